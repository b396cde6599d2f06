"""The training loop: epochs of steps, validation, checkpoints."""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
import tqdm

from mtl_jax.errors import Interrupted
from mtl_jax.tasks import Batch, Task
from mtl_jax.training import interruption, parallel
from mtl_jax.training import step as steps
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.training.metric_log import MetricLog
from mtl_jax.training.state import TrainState
from mtl_jax.training.views import View
from mtl_jax.training.watch import (
    Watch,
    brief,
    check_finite,
    say_spikes,
    say_stale,
)

if TYPE_CHECKING:
    import grain

# From a batch in host memory to the network's logits and losses in host memory.
Network = Callable[
    [parallel.HostBatch], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
]
# From a network to its scores on validation images, `score` among them, larger for
# better; nothing without such images.
Validate = Callable[[Network], dict[str, float | None]]


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
      model: with a head for each task, and the axis `parallel.AXIS`.
      tasks: in the order of the network's visits.
      optimizer: of the method.
      augment: applied to the training images; None for nothing.
      view: the part of an image that the network sees; None for the whole image.
      batch_size: images of a step, over all devices.
      steps_per_epoch: of the training split.
      num_epochs: in all, those before a resumption among them.
      validate_every: epochs from one validation and checkpoint to the next.
      interference_every: steps from one log of the tasks' interference to the next; 0
        for none.
      checkpoint_every: steps from one checkpoint to the next, besides those of
        validations; 0 for none.
      patience: validations in a row without a new best score after which it ends; 0 to
        go on to the last epoch.
      skips_nonfinite: whether a step that is not finite is undone; see
        `step.skip_nonfinite`.
      accumulate: microbatches of a step; see `step.sequential_step`.
      steps_per_dispatch: steps that the devices make by one call.
    """

    model: nn.Module
    tasks: Sequence[Task]
    optimizer: steps.Optimizer
    augment: steps.Augment | None
    view: View | None
    batch_size: int
    steps_per_epoch: int
    num_epochs: int
    validate_every: int
    interference_every: int = 0
    checkpoint_every: int = 0
    patience: int = 0
    skips_nonfinite: bool = False
    accumulate: int = 1
    steps_per_dispatch: int = 1

    @property
    def pauses(self) -> list[int]:
        """Numbers of steps after which no dispatch may go on.

        After each multiple of them an epoch ends, a checkpoint is saved, or the
        interference is logged.
        """
        every = self.steps_per_epoch, self.checkpoint_every, self.interference_every
        return [number for number in every if number]


def fit(
    training: Training,
    state: TrainState,
    batches: "grain.DatasetIterator",
    records: Batch,
    checkpoints: Checkpoints,
    log: MetricLog,
    validate: Validate,
    metadata: Mapping[str, Any],
    position: Mapping[str, Any] | None = None,
) -> None:
    """Trains a network from a state to the last epoch, or until its patience ends.

    Args:
      training: how.
      state: where the training stands.
      batches: of training images, as many as the state has seen behind it; or of their
        places in `records`.
      records: training images that stay on the devices, see `parallel.place`; empty for
        none.
      checkpoints: to save to.
      log: gets the metrics of epochs and validations.
      validate: scores the network.
      metadata: of JSON values, saved with every checkpoint.
      position: `watch` in the record of the checkpoint that the state is from; None for
        a fresh state.

    Raises:
      NotFinite: if a loss or a parameter is not finite.
      Interrupted: if a signal asked the process to end; the last step is saved.
    """
    per_epoch, every = training.steps_per_epoch, training.checkpoint_every
    make_steps = parallel.map_step(steps.scan_steps(_train_step(training)))
    log_interference = _interference_log(training, log)
    evaluate = parallel.map_evaluation(
        steps.evaluation_step(training.model, training.tasks, training.view)
    )
    done = int(state.step)
    state = parallel.replicate(state)
    watch, pending = Watch(training.tasks, checkpoints, position), None
    with interruption.noticed() as asked, _progress(training, done) as progress:
        # JAX's preemption service counts from 1, without gaps.
        for number, (first, step) in enumerate(_dispatches(training, done), 1):
            epoch = (step - 1) // per_epoch + 1
            if (first - 1) % per_epoch == 0:
                watch.begin_epoch()
            shares = [parallel.shard(next(batches)) for _ in range(first, step + 1)]
            log_interference(first, epoch, state, shares[0], records)
            # After the axis of devices.
            stacked = jax.tree.map(lambda *x: np.stack(x, 1), *shares)
            state, metrics = make_steps(state, stacked, records)
            # One dispatch late, so that the next is under way meanwhile.
            if pending:
                watch.add(*_in_host_memory(*pending))
            pending = first, metrics
            progress.update(len(shares))
            stop = asked(number)
            ends_epoch = step % per_epoch == 0
            is_due = stop or (every and step % every == 0)
            if not (ends_epoch or is_due):
                continue
            watch.add(*_in_host_memory(*pending))
            pending = None
            if ends_epoch:
                summary = watch.summary(training.batch_size)
                log.write(step, epoch, summary)
                progress.set_postfix(brief(summary))
            is_validated = ends_epoch and (
                epoch % training.validate_every == 0 or epoch == training.num_epochs
            )
            if not (is_validated or is_due):
                continue
            saved = parallel.unreplicate(state)
            check_finite(saved, step, checkpoints)
            validation = {}
            if is_validated:
                validation = validate(functools.partial(_apply, evaluate, state))
            if validation:
                values = {f"validation/{k}": v for k, v in validation.items()}
                log.write(step, epoch, values)
                watch.score(validation["score"])
            record = {
                **metadata,
                "epoch": epoch,
                "seconds_per_step": watch.seconds_per_step(),
                "validation": validation,
                "watch": watch.position(),
            }
            checkpoints.save(saved, batches, record, validation.get("score"))
            watch.restart_clock()
            if stop:
                checkpoints.wait()
                raise Interrupted(
                    f"{stop.name}: the training is saved after step {step} "
                    f"({checkpoints.path(step)})",
                    stop,
                )
            if 0 < training.patience <= watch.stale:
                say_stale(watch.stale)
                break
    say_spikes(watch.spikes)


def _dispatches(training: Training, done: int) -> Iterator[tuple[int, int]]:
    """The first and the last step of each dispatch, after so many steps.

    Where a pause is too near for a dispatch of full size, each step has its own. So
    there are two programs to compile at the most.
    """
    size = training.steps_per_dispatch
    while done < training.num_epochs * training.steps_per_epoch:
        is_whole = all(done // n == (done + size - 1) // n for n in training.pauses)
        after = done + (size if is_whole else 1)
        yield done + 1, after
        done = after


def _train_step(training: Training) -> Callable[..., Any]:
    """Makes `(state, batch, records) -> (state, metrics)`."""
    step = steps.train_step(
        training.model,
        training.tasks,
        training.optimizer,
        axis_name=parallel.AXIS,
        augment=training.augment,
        accumulate=training.accumulate,
    )
    if training.skips_nonfinite:
        step = steps.skip_nonfinite(step)
    return steps.from_records(step)


def _in_host_memory(
    first: int, metrics: steps.Metrics
) -> tuple[int, Sequence[Mapping[str, np.ndarray]]]:
    """The first step of a dispatch, and the metrics of each of its steps."""
    found = parallel.unreplicate(metrics)
    size = len(found["loss"])
    return first, [{k: v[i] for k, v in found.items()} for i in range(size)]


def _apply(
    evaluate: Callable[[Any, parallel.HostBatch], Any],
    state: TrainState,
    batch: parallel.HostBatch,
) -> Any:
    """Logits and losses of a batch in host memory, by a replicated state."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return parallel.gather(evaluate(variables, parallel.shard(batch)))


def _progress(training: Training, done: int) -> tqdm.tqdm:
    return tqdm.tqdm(
        total=training.num_epochs * training.steps_per_epoch,
        initial=done,
        desc="training",
        unit="step",
        disable=not parallel.is_first_process(),
        mininterval=1 if sys.stderr.isatty() else 20,
    )


def _interference_log(
    training: Training, log: MetricLog
) -> Callable[[int, int, TrainState, parallel.HostBatch, Batch], None]:
    """Logs how tasks interfere, every `interference_every` steps.

    Returns:
      `(step, epoch, state, batch, records)`, which does nothing at other steps.
    """
    tasks, every = training.tasks, training.interference_every
    measure = parallel.map_evaluation(
        steps.from_records(
            steps.interference_step(
                training.model,
                tasks,
                axis_name=parallel.AXIS,
                augment=training.augment,
                accumulate=training.accumulate,
            )
        )
    )

    def write(
        step: int,
        epoch: int,
        state: TrainState,
        batch: parallel.HostBatch,
        records: Batch,
    ) -> None:
        if every and (step - 1) % every == 0:
            found = parallel.unreplicate(measure(state, batch, records))
            log.write(step, epoch, _interference_values(tasks, found))

    return write


def _interference_values(
    tasks: Sequence[Task], found: Mapping[str, np.ndarray]
) -> dict[str, float]:
    names = [task.name for task in tasks]
    values = {
        f"interference/norm_{name}": norm
        for name, norm in zip(names, found["norm"], strict=True)
    }
    for i, j in itertools.combinations(range(len(names)), 2):
        name = f"interference/cosine_{names[i]}_{names[j]}"
        values[name] = found["cosine"][i, j]
    return {name: float(value) for name, value in values.items()}
