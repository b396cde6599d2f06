"""The files below a folder, found by pattern in any unpacked arrangement; tables."""

import csv
import io
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.data import workbooks
from mtl_jax.errors import UserError

# Titles may stand above the heads of a table.
_HEAD_ROWS = 10


class Listing:
    """All visible files below a folder.

    Attributes:
      root: the folder.
      repeated: sentences about photographs or annotations that are there twice.
    """

    def __init__(self, root: pathlib.Path) -> None:
        """Lists the files, but hidden ones and what macOS leaves in archives."""
        self.root = root
        self.repeated: list[str] = []
        self._files: dict[str, pathlib.Path] = {}
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(filter(_is_wanted, subfolders))
            for name in sorted(filter(_is_wanted, names)):
                path = pathlib.Path(folder, name)
                self._files["/" + path.relative_to(root).as_posix().lower()] = path

    def matches(self, pattern: str) -> Iterator[tuple[re.Match, pathlib.Path]]:
        """Yields the files at whose path the pattern is found, sorted.

        Args:
          pattern: regular expression for the end of the path below the folder, in
            lower case, with a slash before each part.
        """
        compiled = re.compile(f"{pattern}$")
        for name, path in self._files.items():
            if (match := compiled.search(name)) is not None:
                yield match, path

    def find(self, pattern: str) -> dict[tuple[str, ...], pathlib.Path]:
        """Returns the files by what the groups of a pattern match; see `matches`."""
        found: dict[tuple[str, ...], pathlib.Path] = {}
        for match, path in self.matches(pattern):
            key = match.groups()
            if key in found:
                self.repeated.append(
                    f"{self.name(path)} and {self.name(found[key])} are the same by "
                    "name; keep one of them."
                )
            found.setdefault(key, path)
        return found

    def name(self, path: pathlib.Path) -> str:
        """The name of a file in messages."""
        return path.relative_to(self.root).as_posix()

    def records(
        self, pattern: str, *heads: str
    ) -> Iterator[tuple[re.Match, str, dict[str, Any]]]:
        """Yields the rows of all tables whose path matches.

        Args:
          pattern: see `matches`; for `.csv` or `.xlsx`.
          *heads: columns that a table must have, as `key_of` writes them.

        Yields:
          The match, the place in messages, and the cells by `key_of` their heads.

        Raises:
          UserError: if a table is damaged or has no such columns.
        """
        for match, path in self.matches(pattern):
            keys: list[str] | None = None
            for number, cells in enumerate(_grid(path), start=1):
                if keys is not None:
                    # Rows may be shorter. Of heads without a name the first counts.
                    padded = [*cells, *[None] * (len(keys) - len(cells))]
                    record: dict[str, Any] = {}
                    for key, cell in zip(keys, padded, strict=False):
                        record.setdefault(key, cell)
                    yield match, f"{self.name(path)} row {number}", record
                elif number <= _HEAD_ROWS and set(heads) <= {key_of(c) for c in cells}:
                    keys = [key_of(cell) for cell in cells]
            if keys is None:
                raise UserError(
                    f"{path} has no columns {', '.join(heads)}; put the published file "
                    "there."
                )


def key_of(head: Any) -> str:
    """Letters and digits of a head, which differ in case and spaces between copies."""
    return re.sub(r"[^a-z0-9]", "", "" if head is None else str(head).lower())


def text_of(cell: Any) -> str:
    """A cell as text, without the quotes and spaces that some tables have around it."""
    return "" if cell is None else str(cell).strip().strip("'\"’`").strip()


def eye_of(cell: Any) -> str:
    """A cell with OD or OS; empty if it has neither."""
    text = text_of(cell).upper()
    return text if text in ("OD", "OS") else ""


def number_of(cells: Mapping[str, Any], head: str, where: str) -> float | None:
    """A cell as a number; None if it is empty.

    Raises:
      UserError: if it is something else.
    """
    text = text_of(cells.get(head))
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise UserError(f"{where} has {text!r} for {head}; a number must be there.")
    return number


def _grid(path: pathlib.Path) -> list[Sequence[Any]]:
    """The cells of a table; of a workbook, those of its first sheet."""
    try:
        if path.suffix.lower() == ".csv":
            text = path.read_text(encoding="utf-8-sig")
            return list(csv.reader(io.StringIO(text, newline="")))
        return list(next(workbooks.sheets(path)))
    # See `workbooks.sheets`.
    except Exception as error:
        raise UserError(
            f"{path} is a damaged table ({error}); copy or download it again."
        ) from error


def _is_wanted(name: str) -> bool:
    return not name.startswith((".", "~$")) and name != "__MACOSX"
