"""Writing files so that what stands under its final name is whole."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from mtl_jax.errors import UserError


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file at once, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as indented JSON, at once or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def whole_directory(path: pathlib.Path, marker: str) -> Iterator[pathlib.Path]:
    """A directory that appears under its name when the block ends well.

    Args:
      path: of the directory. One that is there already is replaced.
      marker: a file that such a directory holds. A directory without it was made by
        somebody else and is not touched, unless it is empty.

    Yields:
      The directory to write to.

    Raises:
      UserError: if `path` holds something else.
    """
    path = path.expanduser().absolute()
    if path.exists() and not (
        path.is_dir() and ((path / marker).exists() or not any(path.iterdir()))
    ):
        raise UserError(
            f"{path} holds something else than earlier output ({marker} is not in it);"
            " name another place for the output."
        )
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
