"""Writes files and folders completely or not at all."""

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
    """Writes a file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as indented JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_replaceable(path: pathlib.Path, contents: Collection[str]) -> None:
    """Refuses an output path that `whole_directory` would refuse.

    Raises:
      UserError: if `path` holds files that do not match `contents`.
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
                "another output folder."
            )


@contextlib.contextmanager
def whole_directory(
    path: pathlib.Path, contents: Collection[str]
) -> Iterator[pathlib.Path]:
    """Creates a directory that appears at its path when the block ends without error.

    Args:
      path: path of the directory. An existing directory is replaced.
      contents: patterns such as `masks/*.png` of all files that it will contain. If the
        existing directory has any other file, it is not touched.

    Yields:
      A temporary directory to write to.

    Raises:
      UserError: if `path` holds files that do not match `contents`, or cannot be
        written.
    """
    check_replaceable(path, contents)
    path = path.expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); name another output folder."
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
