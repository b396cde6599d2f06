"""Keeps compiled programs on disk, so that a command compiles only what is new.

JAX keeps them: its persistent compilation cache. Of several processes that train one
network, JAX lets the first write and all read.
"""

import os
import pathlib
import sys

import filelock
from absl import flags

_MAX_BYTES = 2**30

FOLDER = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs for later commands, at most 1 GiB of them. By "
    "default it is mtl_jax/programs in the user's cache folder (XDG_CACHE_HOME or "
    "~/.cache), or JAX_COMPILATION_CACHE_DIR with JAX's own bound if that is set. An "
    "empty value keeps none.",
)


def switch_on() -> None:
    """Lets JAX use the folder that the flag names; it has compiled nothing yet.

    Where the folder cannot be used, a note says so and the command compiles.
    """
    import jax

    folder = FOLDER.value
    if folder is None:
        if "JAX_COMPILATION_CACHE_DIR" in os.environ:
            return
        folder = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/mtl_jax/programs"
    if not folder:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    try:
        _prepare(path := pathlib.Path(folder).expanduser())
    # No home, no right to write, no room, no locks on that file system.
    except (OSError, RuntimeError) as error:
        print(
            f"note: compiled programs are not kept in {folder} ({error}); name another "
            "folder by --compilation_cache.",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    # Also the dozens of small programs that begin a training: together they take
    # seconds to compile, and a few kilobytes each.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _prepare(folder: pathlib.Path) -> None:
    """Makes the folder, and removes programs whose writing was cut short.

    JAX writes a program and then, in a second file, the time of its last use. Where the
    second is missing, it could neither read nor add programs any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-" + 64 * "[0-9a-f]" + "-cache"):
            if not program.with_name(f"{program.name[:-6]}-atime").exists():
                program.unlink()
