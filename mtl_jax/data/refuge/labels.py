"""Reads REFUGE's tables: spreadsheets, and the `index.json` of repacked copies."""

import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from mtl_jax.data import workbooks
from mtl_jax.data.refuge import official
from mtl_jax.data.refuge.files import SourceFile
from mtl_jax.errors import UserError

# Letters and digits of the columns' heads, which differ between the files.
_NAME = "imgname"
_LABELS = ("glaucomalabel", "labelglaucoma1", "label")
_FOVEA = ("foveax", "foveay")
_SIZE = ("sizex", "sizey")
# A title may stand above the heads.
_HEAD_ROWS = 10


@dataclasses.dataclass(frozen=True)
class Statement:
    """The annotations of one photograph in one row; None where the row has none.

    Attributes:
      stem: official stem of the photograph.
      where: file and row.
      glaucoma: 1 for glaucoma, 0 for healthy.
      fovea_xy: (x, y) = (column, row) in native pixels.
      sides: the photograph's two sides in pixels, the shorter first. Copies differ in
        which of them they call X.
    """

    stem: str
    where: str
    glaucoma: float | None = None
    fovea_xy: tuple[float, float] | None = None
    sides: tuple[int, int] | None = None


@dataclasses.dataclass
class Spreadsheet:
    """The contents of a spreadsheet, or of an `index.json`.

    Attributes:
      name: name of its file.
      statements: its rows of photographs with official names.
      problems: sentences about what is wrong with it.
      heads: letters and digits of its columns' heads; None if it is damaged.
    """

    name: str
    statements: list[Statement] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    heads: set[str] | None = dataclasses.field(default_factory=set)

    def lacks(self, kind: str) -> str | None:
        """Tells why a readable spreadsheet has no annotations of a kind, or None.

        Args:
          kind: `foveas` or `glaucoma labels`.
        """
        if self.heads is None or self.problems:
            return None
        if _NAME not in self.heads:
            return "has no column ImgName"
        if not self.statements:
            return "has no photograph of REFUGE in its column ImgName"
        if kind == "foveas" and not self.heads >= set(_FOVEA):
            return "has no columns Fovea_X and Fovea_Y"
        if kind == "glaucoma labels" and not self.heads & set(_LABELS):
            return "has no column Glaucoma Label, Label(Glaucoma=1) or Label"
        return None


def read_spreadsheet(file: SourceFile) -> Spreadsheet:
    """Reads a spreadsheet; without a column ImgName it has no statements.

    Args:
      file: `.xlsx` or `.json`.
    """
    heads: set[str] = set()
    sheet = Spreadsheet(file.name, heads=heads)
    try:
        workbooks.check_size(file.stamp[0])
        contents = file.read_bytes()
        rows = _json_rows if file.suffix == ".json" else _sheet_rows
        for where, cells in rows(contents):
            heads.update(cells)
            statement, problems = _statement(f"{file.name} {where}", cells)
            sheet.problems += problems
            if statement is not None:
                sheet.statements.append(statement)
    except UserError as error:
        sheet.heads = None
        sheet.problems.append(str(error))
    # See `workbooks.sheets`.
    except Exception as error:
        sheet.heads = None
        sheet.problems.append(
            f"{file.name} is a damaged table ({type(error).__name__}: {error}); copy or"
            " download it again."
        )
    return sheet


def _sheet_rows(contents: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row below the heads: its number, and its cells by head."""
    for rows in workbooks.sheets(io.BytesIO(contents)):
        heads = None
        for number, row in enumerate(rows, start=1):
            if heads is not None:
                yield f"row {number}", dict(zip(heads, row, strict=False))
            elif _NAME in (keys := [_key(cell) for cell in row]):
                heads = keys
            elif number >= _HEAD_ROWS:
                break


def _json_rows(contents: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each entry of a JSON object or list: its key, and its values by name."""
    entries = json.loads(contents.decode("utf-8-sig"))
    if isinstance(entries, list):
        entries = dict(enumerate(entries))
    if not isinstance(entries, dict):
        return
    for key, entry in entries.items():
        if isinstance(entry, dict):
            yield f"entry {key}", {_key(k): value for k, value in entry.items()}


def _key(head: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(head).lower())


def _statement(where: str, cells: dict[str, Any]) -> tuple[Statement | None, list[str]]:
    """Reads a row and lists its problems; other cells than the bad ones are kept."""
    stem = official.stem_of(str(cells.get(_NAME, "")))
    if stem is None or official.split_of(stem) is None:
        return None, []
    problems = []

    def read(parse: Callable[..., Any], *args: Any) -> Any:
        try:
            return parse(where, cells, *args)
        except UserError as error:
            problems.append(str(error))
            return None

    statement = Statement(
        stem,
        where,
        glaucoma=read(_label, stem),
        fovea_xy=read(_pair, _FOVEA),
        sides=_sides(read(_pair, _SIZE)),
    )
    return statement, problems


def _label(where: str, cells: dict[str, Any], stem: str) -> float | None:
    labels = [_number(where, cells, head) for head in _LABELS]
    label = next((label for label in labels if label is not None), None)
    if label not in (None, 0, 1):
        raise UserError(
            f"{where} gives {stem} the label {label:g}; the official set has 1 for "
            "glaucoma and 0 for healthy."
        )
    return label


def _sides(size: tuple[float, float] | None) -> tuple[int, int] | None:
    return None if size is None else (round(min(size)), round(max(size)))


def _pair(
    where: str, cells: dict[str, Any], heads: tuple[str, str]
) -> tuple[float, float] | None:
    first, second = (_number(where, cells, head) for head in heads)
    if (first is None) != (second is None):
        raise UserError(
            f"{where} has one of {heads[0]} and {heads[1]} without the other; the "
            "official set has both."
        )
    return None if first is None or second is None else (first, second)


def _number(where: str, cells: dict[str, Any], head: str) -> float | None:
    value = cells.get(head)
    if value is None or str(value).strip() == "":
        return None
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"{where} has {value!r} for {head}; the official set has a number there."
        )
    return number
