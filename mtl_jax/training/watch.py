"""What is looked at while a run trains: metrics, odd losses, and the best score."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from mtl_jax.errors import NotFinite
from mtl_jax.tasks import Task
from mtl_jax.training import parallel
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.training.state import TrainState

MAX_SKIPPED = 10
# A spike is a loss of so many times the median of the epoch's last steps before it, of
# so many at least and at most.
SPIKE, MIN_STEPS, MAX_STEPS = 10, 5, 100


class Watch:
    """Collects the metrics of an epoch, and stops at a loss that is not finite.

    Attributes:
      steps: metrics of the epoch's steps so far, as JSON holds them.
      best: highest score so far; None before the first.
      stale: validations since then.
      skipped: steps in a row that were undone.
      spikes: steps of the run at which a task's loss was a spike, by the task's name.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        checkpoints: Checkpoints,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins a run, or goes on from the `position` of its checkpoint."""
        self.steps: list[dict[str, Any]] = []
        self.best: float | None = None
        self.stale = self.skipped = 0
        self.spikes: dict[str, list[int]] = {}
        vars(self).update(position or {})
        self._tasks = tasks
        self._checkpoints = checkpoints
        self._seconds: list[float] = []
        self._compiling: int | None = None
        self._since = time.perf_counter()

    def position(self) -> dict[str, Any]:
        """What a checkpoint holds of the watch, as JSON values."""
        return {
            "steps": list(self.steps),
            "best": self.best,
            "stale": self.stale,
            "skipped": self.skipped,
            "spikes": self.spikes,
        }

    def begin_epoch(self) -> None:
        """Forgets the steps of the epoch before."""
        if self._seconds:
            self._compiling = 0
        self.steps, self._seconds = [], []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out the time since the last step, which something else took."""
        self._since = time.perf_counter()

    def score(self, score: float | None) -> None:
        """Takes the score of a validation."""
        is_best = score is not None and (self.best is None or score > self.best)
        self.best, self.stale = (score, 0) if is_best else (self.best, self.stale + 1)

    def add(self, first: int, metrics: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Takes the metrics, in host memory, of the steps of a dispatch.

        Those of a skipped step are 0.

        Args:
          first: number of the first step.
          metrics: of each step.

        Raises:
          NotFinite: if one of the losses is not, or the last of `MAX_SKIPPED` steps in
            a row was undone.
        """
        now = time.perf_counter()
        if self._compiling is None:
            self._compiling = len(metrics)
        self._seconds += [(now - self._since) / len(metrics)] * len(metrics)
        self._since = now
        for step, found in enumerate(metrics, first):
            self._add(step, found)

    def _add(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        is_skipped = bool(metrics.get("skipped"))
        self.skipped = self.skipped + 1 if is_skipped else 0
        if what := self._not_finite(step, metrics):
            if self.skipped == MAX_SKIPPED:
                what += f", the last of {MAX_SKIPPED} steps in a row"
            elif is_skipped:
                _say(f"{what}; it is skipped.")
                # It has no part in the means.
                metrics = {k: np.zeros_like(v) for k, v in metrics.items()}
                metrics["skipped"] = np.array(True)
                what = ""
        if what:
            raise NotFinite(f"{what}; {_advice(self._checkpoints)}")
        self._look_for_spikes(step, metrics["loss"])
        # JSON keeps every bit of a double.
        self.steps.append(
            {name: np.asarray(value, float).tolist() for name, value in metrics.items()}
        )

    def _not_finite(self, step: int, metrics: Mapping[str, np.ndarray]) -> str:
        """Says what of a step is not finite; empty for nothing."""
        for task, loss in zip(self._tasks, metrics["loss"], strict=True):
            if not np.isfinite(loss):
                return f"The {task.name} loss of step {step} is {loss}"
        if metrics.get("skipped"):
            return f"The parameters after step {step} are not finite"
        return ""

    def _look_for_spikes(self, step: int, found: np.ndarray) -> None:
        for index, (task, loss) in enumerate(zip(self._tasks, found, strict=True)):
            # A loss without labels is 0.
            losses = (one["loss"][index] for one in self.steps[-MAX_STEPS:])
            before = [one for one in losses if one]
            if len(before) >= MIN_STEPS and loss > SPIKE * np.median(before):
                self.spikes.setdefault(task.name, []).append(step)

    def seconds_per_step(self) -> float:
        """The median over the epoch's steps, each the mean of its dispatch.

        The first dispatch of a process, which compiles, counts only if it is alone.
        """
        return float(np.median(self._seconds[self._compiling :] or self._seconds))

    def summary(self, batch_size: int) -> dict[str, float | None]:
        """Means over the epoch, and speed; null for a task without labels.

        The number of spikes is that of the run so far, of tasks that had any.
        """
        losses, labels = (
            np.array([step[name] for step in self.steps])
            for name in ("loss", "num_labels")
        )
        counts = (labels > 0).sum(0)
        means = losses.sum(0) / np.maximum(counts, 1)
        seconds = self.seconds_per_step()
        return {
            **{
                f"train/loss_{task.name}": float(mean) if count else None
                for task, mean, count in zip(self._tasks, means, counts, strict=True)
            },
            **{f"train/spikes_{name}": len(at) for name, at in self.spikes.items()},
            **self._of_the_method(),
            "train/seconds_per_step": seconds,
            "train/images_per_second": batch_size / seconds,
        }

    def _of_the_method(self) -> dict[str, float]:
        """Means of what the method's optimizer tells, see `step.optimizer_metrics`."""
        means: dict[str, float] = {}
        kept = [step for step in self.steps if not step.get("skipped")]
        if "skipped" in self.steps[0]:
            means["train/skipped"] = len(self.steps) - len(kept)
        for name in kept[0] if kept else ():
            if name in ("loss", "num_labels", "skipped"):
                continue
            mean = np.mean([step[name] for step in kept], axis=0)
            if mean.ndim:
                for task, value in zip(self._tasks, mean, strict=True):
                    means[f"train/{name}_{task.name}"] = float(value)
            else:
                means[f"train/{name}"] = float(mean)
        return means


def check_finite(state: TrainState, step: int, checkpoints: Checkpoints) -> None:
    """Stops the run before a network is saved that a step has just spoilt.

    The loss shows it one step later only.

    Raises:
      NotFinite: if the state, in host memory, has a network that is not.
    """
    network = (state.params, state.batch_stats)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(network)):
        raise NotFinite(
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


def say_stale(stale: int) -> None:
    """Says that the patience ends a training, which stops before its last epoch."""
    _say(
        f"validations without a new best score: {stale}; config.patience ends the "
        "training here."
    )


def say_spikes(spikes: Mapping[str, Sequence[int]]) -> None:
    """Says at the end of a training which of its losses had spikes, if any had."""
    if spikes:
        found = (
            f"{task} {len(at)} (first, step {at[0]})" for task, at in spikes.items()
        )
        _say(
            f"losses of more than {SPIKE} times the median of their epoch so far: "
            f"{', '.join(found)}; look at the data, or lower the learning rate."
        )


def _say(text: str) -> None:
    """Prints a note above the progress bar."""
    if parallel.is_first_process():
        tqdm.tqdm.write(f"note: {text}", file=sys.stderr)


def brief(summary: dict[str, float | None]) -> dict[str, str]:
    """The summary as it stands beside the progress bar."""
    brief = {
        name.removeprefix("train/loss_"): f"{value:.3g}"
        for name, value in summary.items()
        if name.startswith("train/loss_") and value is not None
    }
    return {**brief, "images/s": f"{summary['train/images_per_second']:.1f}"}
