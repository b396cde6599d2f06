"""Checkpoints of a workdir: the latest two, and the best by the validation score.

A checkpoint holds, as separate items, the network (all that evaluation needs), the
optimizer, the position in the data, and a record of the config and the scores.
"""

import dataclasses
import json
import pathlib
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from mtl_jax.errors import UserError
from mtl_jax.training.state import TrainState

# Two, so that a run whose last checkpoint was damaged can go on from the one before.
NUM_LATEST = 2


class Damaged(UserError):
    """A checkpoint that cannot be read.

    Attributes:
      path: folder of the checkpoint.
    """

    def __init__(self, message: str, path: pathlib.Path) -> None:
        super().__init__(message)
        self.path = path


class Checkpoints:
    """The checkpoints of one workdir, in its folder `checkpoints`."""

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False) -> None:
        """Opens the folder; nothing is written before the first `save`.

        Args:
          workdir: of the run.
          read_only: leave the folder as it is; a run may be saving to it right now.
        """
        self._read_only = read_only
        self._directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._opened: ocp.CheckpointManager | None = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._opened is None:
            self._check_scores()
            keep = ocp.checkpoint_managers
            self._opened = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    # Without it Orbax does not write the scores to disk.
                    best_fn=_score,
                    preservation_policy=keep.AnyPreservationPolicy(
                        [
                            keep.LatestN(NUM_LATEST),
                            keep.BestN(
                                get_metric_fn=_score,
                                n=1,
                                keep_checkpoints_without_metrics=False,
                            ),
                        ]
                    ),
                    cleanup_tmp_directories=not self._read_only,
                    read_only=self._read_only,
                ),
            )
        return self._opened

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order."""
        if not self._directory.is_dir():
            return []
        names = (path.name for path in self._directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """The last step there is a checkpoint of."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the highest score; the latest where none was scored."""
        scored = {
            step: _score(metrics)
            for step in self.steps()
            if (metrics := self._read(step, self._manager.metrics, step))
        }
        return max(scored, key=lambda step: scored[step]) if scored else self.latest()

    def path(self, step: int) -> pathlib.Path:
        """Folder of one checkpoint."""
        return self._directory / str(step)

    def save(
        self,
        state: TrainState,
        batches: grain.DatasetIterator,
        metadata: dict[str, Any],
        score: float | None,
    ) -> None:
        """Saves a state, in the background.

        Args:
          state: in host memory.
          batches: iterator over the training data.
          metadata: of JSON values.
          score: larger for better; None if the state was not validated.
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(_model_item(state)),
                optimizer=ocp.args.StandardSave(_optimizer_item(state)),
                data=grain.checkpoint.CheckpointSave(batches),
                metadata=ocp.args.JsonSave(metadata),
            ),
            metrics=None if score is None else {"score": score},
        )

    def save_network(self, variables: Any, metadata: dict[str, Any]) -> None:
        """Saves a network trained elsewhere as step 0, without optimizer and data.

        Args:
          variables: `params` and `batch_stats`.
          metadata: of JSON values; `imported` among them tells `restore`.
        """
        self._manager.save(
            0,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(variables),
                metadata=ocp.args.JsonSave(metadata),
            ),
        )

    def restore(
        self, step: int, target: TrainState, batches: grain.DatasetIterator
    ) -> TrainState:
        """Reads a state, and moves `batches` to where it was saved.

        A network trained elsewhere has variables only; all else is `target`'s.

        Raises:
          Damaged: if the checkpoint cannot be read.
        """
        if "imported" in self.restore_metadata(step):
            return dataclasses.replace(
                target, **self.restore_model(step, _model_item(target))
            )
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(_model_item(target)),
            optimizer=ocp.args.StandardRestore(_optimizer_item(target)),
            data=grain.checkpoint.CheckpointRestore(batches),
        )
        read = self._read(step, self._manager.restore, step, args=args)
        return dataclasses.replace(
            target,
            step=read.optimizer["step"],
            opt_state=read.optimizer["opt_state"],
            key=jax.random.wrap_key_data(read.optimizer["key"]),
            **read.model,
        )

    def restore_metadata(self, step: int) -> dict[str, Any]:
        """Reads what `save` was given as metadata.

        Raises:
          Damaged: if the checkpoint cannot be read.
        """
        args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        return self._read(step, self._manager.restore, step, args=args).metadata

    def restore_model(self, step: int, variables: Any) -> Any:
        """Reads the network's variables.

        Args:
          step: of the checkpoint.
          variables: of the same shapes, `params` and `batch_stats`.

        Raises:
          Damaged: if the checkpoint cannot be read.
        """
        args = ocp.args.Composite(model=ocp.args.StandardRestore(variables))
        return self._read(step, self._manager.restore, step, args=args).model

    def wait(self) -> None:
        """Waits until what is being saved is on disk."""
        if self._opened is not None:
            self._opened.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved; nothing can be saved any more."""
        if self._opened is not None:
            self._opened.close()

    def _check_scores(self) -> None:
        """Names a checkpoint whose scores Orbax would fail to read on opening."""
        for path in self._directory.glob("*/metrics/metrics"):
            step = path.parents[1].name
            if step.isdigit():
                self._read(int(step), lambda path=path: json.loads(path.read_text()))

    def _read(self, step: int, read: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **kwargs)
        # Orbax meets damage with many kinds of exception, plain `Exception` among them.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise Damaged(
                f"The checkpoint {self.path(step)} is damaged or of another version; "
                f"delete that folder to fall back on an earlier one ({reason}).",
                self.path(step),
            ) from error


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _model_item(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "key": np.asarray(jax.random.key_data(state.key)),
    }
