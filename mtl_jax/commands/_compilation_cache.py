"""Keeps compiled programs on disk, so that a command compiles only what is new.

JAX's persistent compilation cache keeps them. If several processes train one network,
the first one writes and all of them read.
"""

import os
import pathlib
import sys

import filelock
from absl import flags

# JAX looks at every program whenever it adds one. With 300 of them that takes 0.05 s,
# with 1000 it takes 0.16 s, and a training adds dozens.
_MAX_BYTES, _MAX_PROGRAMS = 2**30, 300

FOLDER = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs, and nothing else, for later commands: the "
    "latest 300, at most 1 GiB. The default is JAX_COMPILATION_CACHE_DIR with JAX's "
    "own limit, if that is set. Otherwise it is mtl_jax/programs in the user's cache "
    "folder (XDG_CACHE_HOME or ~/.cache). An empty value keeps no programs.",
)


def switch_on() -> None:
    """Lets JAX use the folder that the flag names; call it before JAX compiles.

    If the folder cannot be used, it prints a note and keeps no programs.
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
    # There may be no home, no permission to write, no space or no file locks.
    except (OSError, RuntimeError) as error:
        print(
            f"note: compiled programs are not kept in {folder} ({error}); name another "
            "folder with --compilation_cache.",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    # Training starts with dozens of small programs. JAX keeps those too: together they
    # take seconds to compile, and each takes a few kilobytes.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _prepare(folder: pathlib.Path) -> None:
    """Makes the folder, and removes programs that are incomplete or too many.

    JAX writes a program, and then a second file with the time of its last use. If a
    second file is missing, JAX can no longer read or add programs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError("it cannot be written")
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        last_uses = {}
        for program in folder.glob("*-" + 64 * "[0-9a-f]" + "-cache"):
            last_use = program.with_name(f"{program.name[:-6]}-atime")
            if last_use.exists():
                last_uses[program, last_use] = last_use.stat().st_mtime
            else:
                program.unlink()
        oldest_first = sorted(last_uses, key=last_uses.__getitem__)
        for files in oldest_first[: max(0, len(oldest_first) - _MAX_PROGRAMS)]:
            for file in files:
                file.unlink()
