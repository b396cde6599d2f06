"""Checkpoints of a workdir: the latest two, and the best by the validation score.

A checkpoint holds, as separate items, the network (all that evaluation needs), the
optimizer, the position in the data, a record of the config and the scores, and the
SHA-256 of each of these files. A checkpoint whose files differ from theirs is damaged
and is not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
from typing import Any

import jax
import numpy as np
from etils import epy

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.training.state import TrainState

# The network in the package has no checkpoints.
with epy.lazy_imports():
    import grain
    import orbax.checkpoint as ocp

# Two, so that a run whose last checkpoint was damaged can go on from the one before.
NUM_LATEST = 2


# Maps the path of each file of a checkpoint to its SHA-256.
DIGESTS = "sha256.json"
# What Orbax still writes when everything else is on disk.
_WRITTEN_LAST = (DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt")

# Orbax renames a folder with this suffix when all files of the checkpoint are on disk.
_TEMPORARY = ".orbax-checkpoint-tmp"
# Checkpoints that are not kept are moved here, so that none is seen in part.
_DELETED = "deleted"

# Orbax looks for the parts of a checkpoint by a pattern that begins with its path.
_NOT_WRITABLE = "*?[\\"
# TensorStore takes it for a separator of folders.
_NOT_READABLE = "\\"


class Unreadable(UserError):
    """A checkpoint that cannot be read; nothing is known of damage.

    Attributes:
      path: folder of the checkpoint.
    """

    def __init__(self, message: str, path: pathlib.Path) -> None:
        super().__init__(message)
        self.path = path


class Absent(Unreadable):
    """A checkpoint that is not there, or not any more."""


class Damaged(Unreadable):
    """A checkpoint whose files are not those that were written."""


class Checkpoints:
    """The checkpoints of one workdir, in its folder `checkpoints`."""

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False) -> None:
        """Opens the folder; nothing is written before the first `save`.

        Args:
          workdir: of the run.
          read_only: nothing will be saved.

        Raises:
          UserError: if the path has a character that Orbax or TensorStore misread.
        """
        self._directory = pathlib.Path(workdir).absolute() / "checkpoints"
        for character in _NOT_READABLE if read_only else _NOT_WRITABLE:
            if character in str(self._directory):
                raise UserError(
                    f"The path {self._directory} has the character {character!r}, with "
                    "which no checkpoint can be "
                    f"{'read' if read_only else 'saved'}; rename the folder."
                )
        self._damage: dict[int, str] = {}
        self._opened: ocp.CheckpointManager | None = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        """Saves, and deletes what is not kept."""
        if self._opened is None:
            if jax.process_index() == 0:
                self._tidy()
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
                    cleanup_tmp_directories=True,
                    todelete_subdir=_DELETED,
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=self._write_digests
                    ),
                ),
            )
        return self._opened

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order.

        Raises:
          UserError: if the folder cannot be read.
        """
        return sorted(int(name) for name in self._names() if name.isdecimal())

    def unfinished(self) -> list[int]:
        """The steps whose checkpoints are being written, or were when a run ended."""
        names = (name.partition(_TEMPORARY) for name in self._names())
        return sorted(int(step) for step, tmp, _ in names if tmp and step.isdecimal())

    def latest(self) -> int | None:
        """The last step there is a sound checkpoint of.

        Raises:
          Damaged: if there are checkpoints, and all are damaged.
        """
        return max(self._sound(), default=None)

    def best(self) -> int | None:
        """The sound step with the highest score; the latest where none was scored.

        Raises:
          Damaged: if there are checkpoints, and all are damaged.
        """
        scores = {
            step: self._read(step, self._score_of, step) for step in self._sound()
        }
        scored = {step: score for step, score in scores.items() if score is not None}
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
          Unreadable: if the checkpoint is absent, damaged, or cannot be read.
        """
        if "imported" in self.restore_metadata(step):
            return dataclasses.replace(
                target, **self.restore_model(step, _model_item(target))
            )
        read = self._restore(
            step,
            model=ocp.args.StandardRestore(_model_item(target)),
            optimizer=ocp.args.StandardRestore(_optimizer_item(target)),
        )
        batches.set_state(self._read(step, self._position, step))
        return dataclasses.replace(
            target,
            step=read.optimizer["step"],
            opt_state=read.optimizer["opt_state"],
            key=self._read(step, jax.random.wrap_key_data, read.optimizer["key"]),
            **read.model,
        )

    def restore_metadata(self, step: int) -> dict[str, Any]:
        """Reads what `save` was given as metadata.

        Raises:
          Unreadable: if the checkpoint is absent, damaged, or cannot be read.
        """
        return self._restore(step, metadata=ocp.args.JsonRestore()).metadata

    def restore_model(self, step: int, variables: Any = None) -> Any:
        """Reads the network's variables.

        Args:
          step: of the checkpoint.
          variables: `params` and `batch_stats` of the shapes that are expected; None
            for any.

        Raises:
          Unreadable: if the checkpoint is absent, damaged, cannot be read, or has other
            shapes.
        """
        return self._restore(step, model=ocp.args.StandardRestore(variables)).model

    def wait(self) -> None:
        """Waits until what is being saved is on disk."""
        if self._opened is not None:
            self._opened.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved; nothing can be saved any more."""
        if self._opened is not None:
            self._opened.close()
            if jax.process_index() == 0:
                self._empty_deleted()

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._directory)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(
                f"{self._directory} cannot be read ({error.strerror}); ask its owner, "
                "or name another workdir."
            ) from error

    def _write_digests(self) -> None:
        """Writes the digests of what has been saved, before it counts as saved."""
        self._empty_deleted()
        for folder in self._directory.glob(f"*{_TEMPORARY}*"):
            (folder / DIGESTS).write_text(json.dumps(_digests(folder), indent=2))

    def _empty_deleted(self) -> None:
        shutil.rmtree(self._directory / _DELETED, ignore_errors=True)

    def _tidy(self) -> None:
        """Makes room for the checkpoints of a run that begins or goes on.

        Orbax saves no step before the last one that is there, so that damaged ones are
        set aside.
        """
        self._empty_deleted()
        for step in self.steps():
            if self._damage_of(step):
                aside = self._directory / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                self.path(step).rename(aside)
            else:
                # Orbax reads the score of each.
                self._read(step, self._score_of, step)

    def _damage_of(self, step: int) -> str:
        """Tells what is damaged in a checkpoint, once; empty for nothing.

        Raises:
          Unreadable: if it is absent or cannot be read.
        """
        if step not in self._damage:
            folder = self.path(step)
            try:
                self._damage[step] = _damage(folder)
            except OSError as error:
                raise Unreadable(
                    f"The checkpoint {folder} cannot be read ({error.strerror}: "
                    f"{error.filename}); see to that, or use another checkpoint or "
                    "workdir.",
                    folder,
                ) from error
            # It may have been moved away meanwhile.
            if not folder.is_dir():
                del self._damage[step]
                raise Absent(
                    f"There is no checkpoint {folder}; use another one.",
                    folder,
                )
        return self._damage[step]

    def _sound(self) -> list[int]:
        """The steps of checkpoints that are not damaged; tells of those that are."""
        sound, damaged = [], []
        for step in self.steps():
            try:
                (damaged if self._damage_of(step) else sound).append(step)
            except Absent:
                continue
        if damaged and not sound:
            raise self._damaged(damaged[-1])
        for step in damaged:
            _note(
                f"The checkpoint {self.path(step)} is damaged ({self._damage[step]}); "
                "another one is used."
            )
        return sound

    def _damaged(self, step: int) -> Damaged:
        path = self.path(step)
        return Damaged(
            f"The checkpoint {path} is damaged ({self._damage[step]}); use another "
            "checkpoint or workdir, or delete that folder.",
            path,
        )

    def _position(self, step: int) -> dict[str, Any]:
        """The position in the data: every process wrote the same, however many."""
        first = next((self.path(step) / "data").glob("process_0-of-*.json"))
        return json.loads(first.read_text())

    def _score_of(self, step: int) -> float | None:
        path = self.path(step) / "metrics/metrics"
        return _score(json.loads(path.read_text())) if path.exists() else None

    def _restore(self, step: int, **items: Any) -> Any:
        """Reads items of a checkpoint."""
        # Not by the manager, which reads something of every checkpoint.
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return self._read(
                step,
                checkpointer.restore,
                self.path(step),
                args=ocp.args.Composite(**items),
            )

    def _read(self, step: int, read: Any, *args: Any, **kwargs: Any) -> Any:
        path = self.path(step)
        if self._damage_of(step):
            raise self._damaged(step)
        try:
            return read(*args, **kwargs)
        # Orbax has many kinds of exception, plain `Exception` among them.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            if not path.is_dir():
                raise Absent(
                    f"The checkpoint {path} was deleted while it was read; repeat the "
                    "command.",
                    path,
                ) from error
            why = (
                "its files are those that were written, perhaps by another version"
                if (path / DIGESTS).exists()
                else "it is of an earlier version of mtl_jax, and has no digests that "
                "would tell whether it is damaged"
            )
            raise Unreadable(
                f"The checkpoint {path} cannot be read: {why}; use another checkpoint "
                f"or workdir ({reason}).",
                path,
            ) from error


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, by its path in it."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    found = {}
    # `rglob` leaves out what it is denied.
    for place, _, names in os.walk(folder, onerror=fail):
        for path in (pathlib.Path(place, name) for name in sorted(names)):
            name = path.relative_to(folder).as_posix()
            if name not in _WRITTEN_LAST:
                with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                    found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _damage(folder: pathlib.Path) -> str:
    """Tells what differs in a checkpoint from its digests; empty for nothing.

    A checkpoint of an earlier version has no digests, and nothing is said of it.

    Raises:
      OSError: if a file cannot be read.
    """
    try:
        listed = files.parse_json((folder / DIGESTS).read_bytes()).items()
    except FileNotFoundError:
        listed = ()
    except (ValueError, AttributeError):
        return f"{DIGESTS!r} cannot be decoded"
    # Also without digests, since it finds files that may not be read.
    found = _digests(folder)
    for name, digest in listed:
        if name not in found:
            return f"{name!r} is missing"
        if found[name] != digest:
            return f"{name!r} is not what was written: its SHA-256 differs"
    return ""


@functools.cache
def _note(text: str) -> None:
    """Prints a note once, however often the checkpoint is opened."""
    print(f"note: {text}", file=sys.stderr)


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
