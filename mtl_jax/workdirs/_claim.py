"""Claims the folder of a run, and finds its networks.

A workdir holds one network. If its method trains several, it holds a folder for each.
"""

import contextlib
import os
import pathlib
import socket
import time
from collections.abc import Iterator

import filelock

from mtl_jax import configuration, files, tasks
from mtl_jax.errors import UserError
from mtl_jax.training import parallel
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.workdirs import _portable

# What was trained so far would be the same, but for rounding. Data may have moved to
# another folder.
_CHANGEABLE = (
    "checkpoint_every",
    "data.data_dir",
    "on_nonfinite",
    "patience",
    *configuration.EXECUTION,
)


class InUse(UserError):
    """Another process trains in the workdir."""


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps all other processes from training in a workdir during the block.

    The kernel ends the lock of a process that dies. A file system without `flock` gets
    filelock's marker instead, which outlives a process on another host. A process that
    holds the lock may enter again. Reading the workdir needs no lock.

    Args:
      workdir: folder of the run. It is made, and removed again if it stays empty.

    Raises:
      InUse: if another process holds the lock. The message names that process.
      UserError: if the workdir cannot be written.
    """
    # The first process of a run locks for all of them.
    if not parallel.is_first_process():
        yield
        return
    # Absolute: one object for each path counts how often this process has entered.
    path = workdir.absolute() / "lock"
    lock = filelock.FileLock(path, is_singleton=True)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        is_ours = lock.lock_counter == 1 and isinstance(lock, filelock.UnixFileLock)
        if is_ours:
            # The first lines of filelock's marker, too.
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
    except filelock.Timeout:
        raise InUse(
            f"{_holder(path)} trains in {workdir} (its lock is {path}); wait until it "
            "ends, or name another workdir."
        ) from None
    except OSError as error:
        raise _unwritable(workdir, error) from error
    try:
        yield
    finally:
        if is_ours:
            # While it is locked: filelock looks whether its file is still there.
            path.unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            workdir.rmdir()


def _holder(lock: pathlib.Path) -> str:
    """Names the process that holds a lock."""
    try:
        pid, host, *_ = lock.read_text().splitlines()
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(lock.stat().st_mtime))
    # It is about to write the file, or to remove it.
    except (OSError, ValueError):
        return "Another process"
    return f"Process {pid} on {host}, since {since},"


def _unwritable(workdir: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"{workdir} cannot be written ({error.strerror}); name another workdir."
    )


def networks(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Lists the folders with checkpoints: the workdir, or those of its networks.

    Raises:
      UserError: if one of them cannot be read.
    """
    # Those that may not be read are refused; other folders may be anything.
    known = [workdir / name for name in (*tasks.TASKS, *configuration.STAGES)]
    parts = {path.parent for path in workdir.glob("*/checkpoints")}
    return [
        folder
        for folder in (workdir, *known, *sorted(parts - {*known}))
        if Checkpoints(folder, read_only=True).steps() != []
    ]


def claim(workdir: pathlib.Path, config: configuration.Config, resume: bool) -> None:
    """Claims the workdir for a run by writing its config there.

    Raises:
      UserError: if the workdir holds a run of another config (a larger number of epochs
        is none), or a run of this config and `resume` is False, or an exported network,
        or if it cannot be written.
    """
    if _portable.is_portable(workdir):
        raise UserError(
            f"{workdir} holds an exported network, which is not trained further; name "
            "another workdir."
        )
    path = workdir / "config.json"
    is_begun = networks(workdir) != []
    if path.exists():
        try:
            theirs = configuration.from_json(path.read_text(), path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); move it away to continue with "
                "--resume, or name another workdir."
            ) from error
        differing = configuration.differences(config, theirs)
        fields = [field for field in differing if field not in _CHANGEABLE]
        if configuration.flatten(theirs).get("num_epochs") in range(config.num_epochs):
            fields.remove("num_epochs")
        if fields and is_begun:
            raise UserError(
                f"{workdir} holds a run of another config (it differs in "
                f"{', '.join(fields)}); name another workdir."
            )
    if not resume and is_begun:
        raise UserError(
            f"{workdir} already holds a run of this config; continue it with "
            "--resume, or name another workdir."
        )
    if not parallel.is_first_process():
        return
    try:
        files.write_text(path, configuration.to_json(config) + "\n")
    except OSError as error:
        raise _unwritable(workdir, error) from error
