"""The training loop: epochs, validation, checkpoints, resuming."""

import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import tqdm

from mtl_jax import configuration, files
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


def train(
    config: configuration.Config, workdir: pathlib.Path, *, resume: bool = False
) -> None:
    """Trains a network into a workdir.

    Args:
      config: as in `configs/default.py`.
      workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`.
      resume: go on from the latest checkpoint of this workdir, if there is one.

    Raises:
      UserError: for an unsuitable config, data set or workdir, and when a loss is not
        finite.
    """
    configuration.check(config)
    parallel.check_batch_size(config.batch_size)
    splits = _open_splits(config)
    epoch_steps = pipeline.steps_per_epoch(splits.train, config.batch_size)
    workdir = pathlib.Path(workdir)
    checkpoints = Checkpoints(workdir)
    _claim_workdir(workdir, config, checkpoints, resume)

    tasks = configuration.create_tasks(config)
    model = configuration.create_model(config, parallel.AXIS)
    optimizer = configuration.create_optimizer(config, epoch_steps)
    state = steps.create_train_state(model, optimizer, jax.random.key(config.seed))
    batches = pipeline.training_batches(splits.train, config.batch_size, config.seed)
    if (latest := checkpoints.latest()) is not None:
        state, saved = checkpoints.restore(latest, state, batches)
        if saved["num_training_images"] != len(splits.train):
            raise UserError(
                f"{splits.train.name} has {len(splits.train)} images, but this run "
                f"began with {saved['num_training_images']}; name another workdir."
            )
    done = int(state.step)
    train_step = parallel.map_step(
        steps.sequential_step(
            model,
            tasks,
            optimizer,
            axis_name=parallel.AXIS,
            augment=configuration.create_augmentation(config),
        )
    )
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
            watch = _Watch(tasks, checkpoints)
            for step in range((epoch - 1) * epoch_steps + 1, epoch * epoch_steps + 1):
                state, metrics = train_step(state, parallel.shard(next(batches)))
                watch.add(step, metrics)
                progress.update()
            summary = watch.summary(config.batch_size)
            progress.set_postfix(_brief(summary))
            log.write(step, epoch, summary)
            if epoch % config.validate_every == 0 or epoch == config.num_epochs:
                _check_finite(state, step, checkpoints)
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


class _Splits(NamedTuple):
    train: pipeline.Table
    validation: pipeline.Table | None
    image_size: int


def _open_splits(config: configuration.Config) -> _Splits:
    dataset = pipeline.open_dataset(config.data.data_dir, config.data.dataset)
    train, validation = pipeline.open_training_splits(
        dataset, configuration.create_fold(config)
    )
    return _Splits(train, validation, pipeline.image_size(dataset))


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
    network = parallel.map_evaluation(steps.evaluation_step(model, tasks))

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


class _Watch:
    """Collects the metrics of an epoch, and stops the run at a loss that is not finite.

    Metrics are read one step late, so that the next step is under way meanwhile.
    """

    def __init__(self, tasks: Sequence[Task], checkpoints: Checkpoints):
        self._tasks = tasks
        self._checkpoints = checkpoints
        self._pending: tuple[int, Any] | None = None
        self._losses: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._times = [time.perf_counter()]

    def add(self, step: int, metrics: steps.Metrics) -> None:
        """Takes the metrics of a step just started."""
        self._read()
        self._pending = (step, metrics)

    def summary(self, batch_size: int) -> dict[str, float | None]:
        """Mean losses and speed over the epoch; null for a task without labels."""
        self._read()
        losses, labels = np.array(self._losses), np.array(self._labels)
        counts = (labels > 0).sum(0)
        means = losses.sum(0) / np.maximum(counts, 1)
        seconds = float(np.median(np.diff(self._times)))
        return {
            **{
                f"train/loss_{task.name}": float(mean) if count else None
                for task, mean, count in zip(self._tasks, means, counts, strict=True)
            },
            "train/seconds_per_step": seconds,
            "train/images_per_second": batch_size / seconds,
        }

    def _read(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        metrics = parallel.unreplicate(metrics)
        self._times.append(time.perf_counter())
        for task, loss in zip(self._tasks, metrics["loss"], strict=True):
            if not np.isfinite(loss):
                raise UserError(
                    f"The {task.name} loss of step {step} is {loss}; "
                    f"{_advice(self._checkpoints)}"
                )
        self._losses.append(metrics["loss"])
        self._labels.append(metrics["num_labels"])
        self._pending = None


def _check_finite(state: TrainState, step: int, checkpoints: Checkpoints) -> None:
    """Stops the run before a network is saved that a step has just spoilt.

    The loss shows it one step later only.
    """
    network = parallel.unreplicate((state.params, state.batch_stats))
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(network)):
        raise UserError(
            f"The parameters after step {step} are not finite; {_advice(checkpoints)}"
        )


def _advice(checkpoints: Checkpoints) -> str:
    """What to do about numbers that are not finite."""
    checkpoints.wait()
    last = checkpoints.latest()
    good = "none" if last is None else checkpoints.path(last)
    return (
        f"lower the learning rate or look at the data (last good checkpoint: {good})."
    )


def _claim_workdir(
    workdir: pathlib.Path,
    config: configuration.Config,
    checkpoints: Checkpoints,
    resume: bool,
) -> None:
    """Makes the workdir this run's own, unless it is another's."""
    path = workdir / "config.json"
    if path.exists():
        try:
            theirs = configuration.from_json(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); name another workdir."
            ) from error
        fields = configuration.differences(config, theirs)
        # Data that have moved are the same data.
        fields = [field for field in fields if field != "data.data_dir"]
        if fields and checkpoints.latest() is not None:
            raise UserError(
                f"{workdir} holds a run of another config (it differs in "
                f"{', '.join(fields)}); name another workdir."
            )
        if not resume and checkpoints.latest() is not None:
            raise UserError(
                f"{workdir} holds a run of this config already; go on with it by "
                "--resume, or name another workdir."
            )
    if not parallel.is_first_process():
        return
    try:
        files.write_text(path, configuration.to_json(config) + "\n")
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}); name another workdir."
        ) from error


def _brief(summary: dict[str, float | None]) -> dict[str, str]:
    """The summary as it stands beside the progress bar."""
    brief = {
        name.removeprefix("train/loss_"): f"{value:.3g}"
        for name, value in summary.items()
        if name.startswith("train/loss_") and value is not None
    }
    return {**brief, "images/s": f"{summary['train/images_per_second']:.1f}"}
