"""Writing files so that what stands under its final name is whole."""

import contextlib
import fnmatch
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from typing import Any

from mtl_jax.errors import UserError


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file at once, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as indented JSON, at once or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_replaceable(path: pathlib.Path, contents: Collection[str]) -> None:
    """Refuses a place for output that `whole_directory` would refuse.

    Raises:
      UserError: if `path` holds something else.
    """
    path = path.expanduser().resolve()
    if not path.exists():
        return
    there = [path] if not path.is_dir() else [p for p in path.rglob("*") if p.is_file()]
    for file in sorted(there):
        name = file.relative_to(path).as_posix()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in contents):
            raise UserError(
                f"{path} holds something else than earlier output ({file.name}); name "
                "another place for the output."
            )


@contextlib.contextmanager
def whole_directory(
    path: pathlib.Path, contents: Collection[str]
) -> Iterator[pathlib.Path]:
    """A directory that appears under its name when the block ends well.

    Args:
      path: of the directory. One that is there already is replaced.
      contents: patterns such as `masks/*.png` of all files that are going to be in it.
        A directory that holds another file is somebody's own and is not touched.

    Yields:
      The directory to write to.

    Raises:
      UserError: if `path` holds something else.
    """
    check_replaceable(path, contents)
    path = path.expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); name another place for the "
            "output."
        ) from error
    temporary = pathlib.Path(temporary)
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
