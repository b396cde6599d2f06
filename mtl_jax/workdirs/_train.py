"""Trains the networks of a config in a workdir."""

import contextlib
import copy
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from mtl_jax import configuration, metrics, tasks, weights
from mtl_jax.data import batching, pipeline
from mtl_jax.errors import UserError
from mtl_jax.inference import scoring
from mtl_jax.inference.vcdr import VcdrClassifier
from mtl_jax.training import parallel
from mtl_jax.training import step as steps
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.training.loop import Network, Training, Validate, fit
from mtl_jax.training.metric_log import MetricLog
from mtl_jax.training.state import TrainState
from mtl_jax.training.watch import say_stale
from mtl_jax.workdirs._claim import claim, locked

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class _Data(NamedTuple):
    """What all networks of a run are trained on.

    Attributes:
      dataset: the data set.
      train: its training split.
      validation: its validation split, if any.
      may_be_other: whether a run may go on with other records than it began with.
    """

    dataset: "tfds.core.DatasetBuilder"
    train: pipeline.Split
    validation: pipeline.Split | None
    may_be_other: bool


def train(
    config: configuration.Config,
    workdir: pathlib.Path,
    *,
    resume: bool = False,
    accept_other_data: bool = False,
) -> None:
    """Trains the network of a config, or each of its networks in turn.

    A task for which no training image is annotated is named and left out of the config.

    Args:
      config: config with the fields of `configs/default.py`.
      workdir: folder that gets `config.json`, `metrics.jsonl`, `tensorboard/` and
        `checkpoints/`. Each of several networks has a folder with these.
      resume: whether to continue from the latest checkpoint of this workdir, if any.
      accept_other_data: whether to continue with a data set that has the name and the
        number of images of the one that the run began with, but other content.

    Raises:
      UserError: if the config, the data set or the workdir is unsuitable, or another
        process trains in the workdir.
      NotFinite: if a loss or a parameter is not finite.
      Interrupted: if a signal asked the process to end; what it did is saved.
    """
    configuration.check(config)
    parallel.check_batch_size(config.batch_size, config.accumulate)
    with locked(workdir := pathlib.Path(workdir)):
        _train(config, workdir, _open(config, accept_other_data), resume)


def _train(
    config: configuration.Config, workdir: pathlib.Path, data: _Data, resume: bool
) -> None:
    config = _of_labelled_tasks(config, data.train)
    parts = configuration.part_configs(config)
    if not parts:
        _train_network(config, workdir, data, lambda: claim(workdir, config, resume))
    for number, (name, part) in enumerate(parts.items()):

        def claim_folders(number=number, name=name, part=part):
            # All networks have the first one's data and weights, which are checked
            # before the run writes anything.
            if number == 0:
                claim(workdir, config, resume)
            # A finished network is kept.
            claim(workdir / name, part, resume=True)

        _train_network(part, workdir / name, data, claim_folders)


def _open(config: configuration.Config, may_be_other: bool) -> _Data:
    dataset = pipeline.open_dataset(config.data.data_dir, config.data.dataset)
    fold = configuration.build(config).fold
    return _Data(
        dataset,
        *pipeline.open_training_splits(dataset, fold, config.data.pixel_origin),
        may_be_other,
    )


def _of_labelled_tasks(
    config: configuration.Config, train: pipeline.Split
) -> configuration.Config:
    """Leaves out the tasks that nothing would train: their heads would predict noise.

    Raises:
      UserError: if there is no other task, or the others are no tasks for the config.
    """
    chosen = tasks.build(config.tasks)
    images = batching.annotated_images(train, chosen)
    labelled = {t.name for t, mine in zip(chosen, images, strict=True) if len(mine)}
    left_out = ", ".join(name for name in config.tasks if name not in labelled)
    if not left_out:
        return config
    if not labelled:
        raise UserError(
            f"{train.name} has no image annotated for any of the tasks {left_out}; "
            "add annotations, or choose another data set or other config.tasks."
        )
    if parallel.is_first_process():
        print(
            f"note: {train.name} has no image annotated for {left_out}; the training "
            "leaves that out, and nothing will be predicted of it.",
            file=sys.stderr,
        )
    config = copy.deepcopy(config)
    config.tasks = tuple(name for name in config.tasks if name in labelled)
    configuration.check(config)
    return config


def load_pretrained(config: configuration.Config) -> weights.EncoderWeights | None:
    """Loads the weights that the encoder starts from; None if from scratch.

    Raises:
      UserError: if the config's folder has no weights, or they do not fit the network.
    """
    if not config.model.pretrained:
        return None
    encoder = weights.load(pathlib.Path(config.model.pretrained))
    model = config.model
    weights.check_suitable(encoder, model.encoder, model.norm, model.width)
    return encoder


def _train_network(
    config: configuration.Config,
    folder: pathlib.Path,
    data: _Data,
    claim_folder: Callable[[], None],
) -> None:
    """Trains one network; claims its folder after all other checks."""
    experiment = configuration.build(config)
    dataset, train, validation, may_be_other = data
    side, fingerprint = pipeline.image_size(dataset), pipeline.fingerprint(dataset)
    if experiment.view is None:
        configuration.check_image_size(config, side, f"{train.name} has images of")
    if config.patience and validation is None:
        raise UserError(
            f"config.patience is {config.patience}, but there are no validation images "
            f"beside {train.name}; set it to 0."
        )
    steps_per_epoch = batching.steps_per_epoch(train, config.batch_size)
    is_per_task = config.data.batches == "per_task"
    training = Training(
        model=experiment.model.clone(axis_name=parallel.AXIS),
        tasks=experiment.tasks,
        optimizer=experiment.optimizer(steps_per_epoch),
        augment=experiment.augment,
        view=experiment.view,
        batch_size=config.batch_size * (len(experiment.tasks) if is_per_task else 1),
        steps_per_epoch=steps_per_epoch,
        num_epochs=config.num_epochs,
        validate_every=config.validate_every,
        interference_every=config.interference_every,
        checkpoint_every=config.checkpoint_every,
        patience=config.patience,
        skips_nonfinite=config.on_nonfinite == "skip",
        accumulate=config.accumulate,
        steps_per_dispatch=config.steps_per_dispatch,
    )
    _check_dispatch(training)
    is_resident = config.data.memory == "device"
    # They may be too many, which is to be said before anything is written.
    records = train.whole() if is_resident else {}
    checkpoints = Checkpoints(folder)
    latest = checkpoints.latest()
    pretrained = load_pretrained(config) if latest is None else None
    claim_folder()
    with contextlib.closing(checkpoints):
        stored: Mapping[str, Any] = {}
        if latest is not None:
            stored = checkpoints.restore_metadata(latest)
            _check_data(train, None if may_be_other else fingerprint, stored)
            stale = stored.get("watch", {}).get("stale", 0)
            is_stale = 0 < config.patience <= stale
            is_at_end = latest >= config.num_epochs * steps_per_epoch
            if is_stale and not is_at_end:
                say_stale(stale)
            if is_at_end or is_stale:
                # The run is finished. Only check that its network can be read.
                checkpoints.restore_model(latest, experiment.variable_shapes())
                return
        order = config.batch_size, config.seed, is_resident
        if is_per_task:
            batches = batching.per_task_batches(train, experiment.tasks, *order)
        else:
            batches = batching.training_batches(train, *order)
        records = parallel.place(records)
        state = _initial_state(config.seed, training, pretrained)
        if latest is not None:
            state = checkpoints.restore(latest, state, batches)
        classifier = None
        # As in the paper's tables, Res34-Unet does not predict glaucoma.
        if config.view.kind != "crop" or metrics.DIAGNOSIS in config.tasks:
            classifier = scoring.fit_vcdr_classifier(
                train, config.evaluation.vcdr_C, experiment.post
            )
        # A run that went on with other data was trained on both.
        seen = {*stored.get("training_photographs", "").split(), *train.digests()}
        metadata = {
            "config": configuration.to_json(config),
            "image_size": side,
            "shape": pipeline.shape(dataset),
            "num_training_images": len(train),
            "records_fingerprint": fingerprint,
            "training_photographs": " ".join(sorted(seen)),
            "prng": _prng(),
            "vcdr_classifier": classifier and classifier._asdict(),
        }
        validate = _validation(experiment, validation, classifier, side)
        log = MetricLog(folder, int(state.step), silent=not parallel.is_first_process())
        with contextlib.closing(log):
            fit(
                training,
                state,
                batches,
                records,
                checkpoints,
                log,
                validate,
                metadata,
                stored.get("watch"),
            )


def _check_dispatch(training: Training) -> None:
    """Refuses dispatches that are longer than what is between two pauses."""
    if training.steps_per_dispatch > (most := min(training.pauses)):
        raise UserError(
            f"config.steps_per_dispatch is {training.steps_per_dispatch}, but an epoch "
            "ends, a checkpoint is saved or the interference is logged whenever the "
            f"number of steps is a multiple of {most}; make it at most {most}."
        )


def _initial_state(
    seed: int, training: Training, pretrained: weights.EncoderWeights | None
) -> TrainState:
    state = steps.create_train_state(
        training.model, training.optimizer, jax.random.key(seed)
    )
    if pretrained is None:
        return state
    params, batch_stats = weights.start_from(
        pretrained, state.params, state.batch_stats
    )
    return dataclasses.replace(state, params=params, batch_stats=batch_stats)


def _prng() -> str:
    """Names the implementation of random numbers."""
    return str(jax.random.key_impl(jax.random.key(0)))


def _check_data(
    train: pipeline.Split, fingerprint: str | None, saved: Mapping[str, Any]
) -> None:
    """Refuses to continue a run with other data than it began with.

    None accepts any fingerprint. Checkpoints of earlier versions have none.
    """
    if saved["num_training_images"] not in (None, len(train)):
        raise UserError(
            f"{train.name} has {len(train)} images, but this run began with "
            f"{saved['num_training_images']}; name another workdir."
        )
    if saved.get("prng", _prng()) != _prng():
        raise UserError(
            f"This run began with JAX_DEFAULT_PRNG_IMPL={saved['prng']}, and it is "
            f"{_prng()} now; set it as it was."
        )
    began = saved.get("records_fingerprint")
    if None not in (began, fingerprint) and began != fingerprint:
        raise UserError(
            f"{train.name} is of a data set with other records than this run began "
            f"with (the SHA-256 is {fingerprint}, and was {began}); name another "
            "workdir, or add --accept_other_data if it is meant."
        )


def _validation(
    experiment: configuration.Experiment,
    split: pipeline.Split | None,
    classifier: VcdrClassifier | None,
    image_size: int,
) -> Validate:
    """Makes the function that scores a network on the validation split, if any."""
    config = experiment.config

    def validate(network: Network) -> dict[str, float | None]:
        if split is None:
            return {}
        rows = scoring.score_split(
            network,
            split,
            config.batch_size // config.accumulate,
            classifier,
            post=experiment.post,
        )
        summary = scoring.summarize(rows)
        del summary["num_images"]
        score = scoring.score_of(summary, config.evaluation.score, image_size)
        return {**summary, "score": score}

    return validate
