"""Writes files and folders completely or not at all, and replaces only its own."""

import contextlib
import csv
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.errors import UserError, no_room

# In every folder that `whole_directory` wrote: the SHA-256 of each file in it.
_RECORD = ".mtl_jax.json"
# Spreadsheets pass over white space before a formula.
_FORMULA = re.compile(r"'*\s*[=+\-@]")
# What file managers leave in a folder that somebody looks at.
_LEFT_BEHIND = {".DS_Store", "Thumbs.db", "desktop.ini"}
_NOTE = "mtl_jax replaces this folder as long as it holds these files only, unchanged."


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        # A failed write does not know what it writes to.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as indented JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(
    path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Writes rows as CSV in UTF-8, as they come.

    None and absent keys are empty. A text that a spreadsheet would compute, as it
    begins with = + - @, gets a leading apostrophe, which `text_of` takes off. So does
    one with apostrophes before such a sign.

    Reference:
      OWASP, CSV Injection.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            cells = (row.get(column) for column in columns)
            writer.writerow([_safe(c) if isinstance(c, str) else c for c in cells])


def text_of(cell: str) -> str:
    """Returns the text of a cell that `write_csv` wrote."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def _safe(text: str) -> str:
    return f"'{escape(text)}" if _FORMULA.match(text) else escape(text)


def escape(name: str) -> str:
    r"""Writes bytes of a file's name that are not UTF-8 as `\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file whose name is UTF-8, whatever the system's encoding is."""
    return folder / os.fsdecode(name.encode("utf-8"))


def check_replaceable(path: pathlib.Path, used: Collection[pathlib.Path] = ()) -> None:
    """Refuses an output path that `whole_directory` would refuse.

    What is there may be replaced if it is an empty folder, or one that
    `whole_directory` wrote and in which nobody has added or changed a file since.

    Args:
      path: path of the output.
      used: files and folders that the output must neither be nor hold.

    Raises:
      UserError: if `path` holds anything else, or is a folder that is in use.
    """
    path = _resolved(path)
    if os.path.ismount(path):
        raise UserError(f"{path} is a whole file system; name a folder in it.")
    if pathlib.Path.cwd().is_relative_to(path):
        raise UserError(
            f"{path} is the current folder or holds it; name another output folder."
        )
    for one in used:
        if _resolved(one).is_relative_to(path):
            raise UserError(
                f"{path} is or holds {one}, which is used here; name another output "
                "folder."
            )
    if os.path.exists(path) and (reason := _somebody_elses(path)):
        raise UserError(
            f"{path} holds something else than earlier output ({reason}); name another "
            "output folder, or move this one away."
        )


@contextlib.contextmanager
def whole_directory(
    path: pathlib.Path, used: Collection[pathlib.Path] = ()
) -> Iterator[pathlib.Path]:
    """Creates a directory that appears at its path when the block ends without error.

    A list of its files, with their digests, tells later that they may be replaced.

    Args:
      path: path of the directory. An existing directory is replaced, if
        `check_replaceable` finds it to be ours both before and after the block.
      used: files and folders that the directory must neither be nor hold.

    Yields:
      A temporary directory to write to.

    Raises:
      UserError: if `path` may not be replaced, or cannot be written.
    """
    check_replaceable(path, used)
    path = _resolved(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); name another output folder."
        ) from error
    # Only its owner may enter the temporary folder; in it, the umask decides.
    new, old = (pathlib.Path(temporary, name) for name in ("new", "old"))
    try:
        new.mkdir()
        yield new
        digests = {name: _digest(path) for name, path in _files(new).items()}
        write_json(new / _RECORD, {"note": _NOTE, "files": digests})
        check_replaceable(path, used)
        if os.path.exists(path):
            os.replace(path, old)
        os.replace(new, path)
    except UserError:
        raise
    except Exception as error:
        if reason := no_room(error):
            raise UserError(
                f"{path} cannot be written ({reason}); make room there, or name "
                "another output folder."
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _resolved(path: pathlib.Path) -> pathlib.Path:
    # Unlike pathlib's, these functions accept links in a circle and unknown users.
    return pathlib.Path(os.path.realpath(os.path.expanduser(path)))


def _somebody_elses(path: pathlib.Path) -> str:
    """Says why a path is not our own unchanged output; empty if it is."""
    if not path.is_dir():
        return "it is a file"
    found = {n: p for n, p in _files(path).items() if p.name not in _LEFT_BEHIND}
    if not found:
        return ""
    try:
        ours = dict(json.loads((path / _RECORD).read_text("utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return (
            f"{next(iter(found))}, and no {_RECORD} that lists it; earlier versions "
            "left none"
        )
    del found[_RECORD]
    for name, file in found.items():
        if name not in ours:
            return f"{name}, which mtl_jax did not write"
        if _digest(file) != ours[name]:
            return f"{name}, which was changed since mtl_jax wrote it"
    return ""


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Finds files and links below a folder, by their path relative to it."""
    found = []
    for place, folders, names in os.walk(folder, onerror=_fail):
        paths = [pathlib.Path(place, name) for name in (*folders, *names)]
        found += [path for path in paths if path.is_symlink() or not path.is_dir()]
    return {escape(p.relative_to(folder).as_posix()): p for p in sorted(found)}


def _fail(error: OSError) -> None:
    # What cannot be listed is not known to be empty.
    raise error


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
