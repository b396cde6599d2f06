"""The training loop: epochs, validation, checkpoints, resuming."""

import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import tqdm

from mtl_jax import configuration, weights
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import scoring
from mtl_jax.evaluation.vcdr import VcdrClassifier
from mtl_jax.tasks import Task
from mtl_jax.training import parallel
from mtl_jax.training import step as steps
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.training.metric_log import MetricLog
from mtl_jax.training.state import TrainState
from mtl_jax.training.watch import Watch, brief, check_finite
from mtl_jax.training.workdir import claim


def train(
    config: configuration.Config, workdir: pathlib.Path, *, resume: bool = False
) -> None:
    """Trains a network into a workdir.

    Args:
      config: as in `configs/default.py`.
      workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`; of
        a method that trains several networks, a folder with these for each.
      resume: go on from the latest checkpoint of this workdir, if there is one.

    Raises:
      UserError: for an unsuitable config, data set or workdir, and when a loss is not
        finite.
    """
    configuration.check(config)
    parallel.check_batch_size(config.batch_size)
    workdir = pathlib.Path(workdir)
    claim_run = functools.partial(claim, workdir, config, resume)
    parts = configuration.part_configs(config)
    if not parts:
        _train_network(config, workdir, claim_run)
    for number, (name, one) in enumerate(parts.items()):
        # What is finished is found finished.
        claim_part = functools.partial(claim, workdir / name, one, resume=True)
        # The first part's data and weights are all parts': they are looked at before
        # the run leaves a trace.
        before = [] if number else [claim_run]
        _train_network(one, workdir / name, *before, claim_part)


def _train_network(
    config: configuration.Config, workdir: pathlib.Path, *claims: Callable[[], None]
) -> None:
    """Trains one network into a folder of its own, which `claims` are to make it."""
    splits = _open_splits(config)
    epoch_steps = pipeline.steps_per_epoch(splits.train, config.batch_size)
    is_begun = Checkpoints(workdir, read_only=True).latest() is not None
    # Before the folder is claimed: weights that do not fit leave no trace.
    pretrained = None if is_begun else _load_pretrained(config)
    for claim_folder in claims:
        claim_folder()
    checkpoints = Checkpoints(workdir)

    tasks = configuration.create_tasks(config)
    model = configuration.create_model(config, parallel.AXIS)
    optimizer = configuration.create_optimizer(config, epoch_steps)
    state = steps.create_train_state(model, optimizer, jax.random.key(config.seed))
    if pretrained is not None:
        params, batch_stats = weights.start_from(
            pretrained, state.params, state.batch_stats
        )
        state = state.replace(params=params, batch_stats=batch_stats)
    batches = pipeline.training_batches(splits.train, config.batch_size, config.seed)
    if (latest := checkpoints.latest()) is not None:
        state, saved = checkpoints.restore(latest, state, batches)
        if saved["num_training_images"] not in (None, len(splits.train)):
            raise UserError(
                f"{splits.train.name} has {len(splits.train)} images, but this run "
                f"began with {saved['num_training_images']}; name another workdir."
            )
    done = int(state.step)
    inside = {
        "axis_name": parallel.AXIS,
        "augment": configuration.create_augmentation(config),
    }
    train_step = parallel.map_step(steps.train_step(model, tasks, optimizer, **inside))
    probe = _create_probe(config, steps.interference_step(model, tasks, **inside))
    classifier = None
    # Of the second of two stages, as of both, nothing is said of glaucoma.
    if config.view.kind != "disc":
        classifier = scoring.fit_vcdr_classifier(splits.train, config.evaluation.vcdr_C)
    validate = _create_validation(config, splits, model, tasks, classifier)
    metadata = {
        "config": configuration.to_json(config),
        "image_size": splits.image_size,
        "num_training_images": len(splits.train),
        "vcdr_classifier": classifier and classifier._asdict(),
    }

    state = parallel.replicate(state)
    first = parallel.is_first_process()
    log = MetricLog(workdir, done, silent=not first)
    progress = tqdm.tqdm(
        total=config.num_epochs * epoch_steps,
        initial=done,
        desc="training",
        unit="step",
        disable=not first,
        mininterval=1 if sys.stderr.isatty() else 20,
    )
    try:
        for epoch in range(done // epoch_steps + 1, config.num_epochs + 1):
            watch = Watch(tasks, checkpoints)
            for step in range((epoch - 1) * epoch_steps + 1, epoch * epoch_steps + 1):
                batch = parallel.shard(next(batches))
                if interference := probe(step, state, batch):
                    log.write(step, epoch, interference)
                state, metrics = train_step(state, batch)
                watch.add(step, metrics)
                progress.update()
            summary = watch.summary(config.batch_size)
            progress.set_postfix(brief(summary))
            log.write(step, epoch, summary)
            if epoch % config.validate_every == 0 or epoch == config.num_epochs:
                check_finite(state, step, checkpoints)
                if validation := validate(state):
                    values = {f"validation/{k}": v for k, v in validation.items()}
                    log.write(step, epoch, values)
                details = {
                    "epoch": epoch,
                    "seconds_per_step": summary["train/seconds_per_step"],
                    "validation": validation,
                }
                checkpoints.save(
                    parallel.unreplicate(state),
                    batches,
                    metadata | details,
                    validation.get("score"),
                )
    finally:
        progress.close()
        log.close()
        checkpoints.close()


def _load_pretrained(config: configuration.Config) -> weights.Encoder | None:
    """The weights that the encoder starts from; None where it starts from scratch."""
    if not config.model.pretrained:
        return None
    encoder = weights.load(pathlib.Path(config.model.pretrained))
    model = config.model
    weights.check_suitable(encoder, model.encoder, model.norm, model.width)
    return encoder


def _create_probe(
    config: configuration.Config, step: Callable[..., Any]
) -> Callable[[int, TrainState, Any], dict[str, float]]:
    """What measures, at the steps that the config wants it at, how tasks interfere.

    Returns:
      `(step, state, batch) -> values by name`, which are none at other steps.
    """
    mapped = parallel.map_evaluation(step)
    names = [task.name for task in configuration.create_tasks(config)]
    every = config.interference_every

    def probe(step, state, batch):
        if not every or (step - 1) % every:
            return {}
        found = parallel.unreplicate(mapped(state, batch))
        values = {
            f"interference/norm_{name}": norm
            for name, norm in zip(names, found["norm"], strict=True)
        }
        for i, j in itertools.combinations(range(len(names)), 2):
            name = f"interference/cosine_{names[i]}_{names[j]}"
            values[name] = found["cosine"][i, j]
        return {name: float(value) for name, value in values.items()}

    return probe


class _Splits(NamedTuple):
    train: pipeline.Table
    validation: pipeline.Table | None
    image_size: int


def _open_splits(config: configuration.Config) -> _Splits:
    dataset = pipeline.open_dataset(config.data.data_dir, config.data.dataset)
    train, validation = pipeline.open_training_splits(
        dataset, configuration.create_fold(config)
    )
    side = pipeline.image_size(dataset)
    if not config.view.kind:
        configuration.check_image_size(config, side, f"{train.name} has images of")
    return _Splits(train, validation, side)


def _create_validation(
    config: configuration.Config,
    splits: _Splits,
    model: nn.Module,
    tasks: Sequence[Task],
    classifier: VcdrClassifier | None,
) -> Callable[[TrainState], dict[str, float | None]]:
    """What scores a replicated state; it says nothing without a validation split."""
    if splits.validation is None:
        return lambda state: {}
    view = configuration.create_view(config)
    network = parallel.map_evaluation(steps.evaluation_step(model, tasks, view))

    def validate(state):
        variables = {"params": state.params, "batch_stats": state.batch_stats}

        def outputs(batch):
            return parallel.gather(network(variables, parallel.shard(batch)))

        rows = scoring.score_split(
            outputs, splits.validation, config.batch_size, classifier
        )
        summary = scoring.summarize(rows)
        del summary["num_images"]
        score = scoring.score_of(summary, config.evaluation.score, splits.image_size)
        return {**summary, "score": score}

    return validate
