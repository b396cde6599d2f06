"""Rows of a manifest: the allowed values of cells, and their meaning."""

import math
import pathlib
from collections.abc import Callable, Iterable
from typing import TypeVar

from mtl_jax.data.schema import SPLITS
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Row, unsuitable

REQUIRED_COLUMNS = ("image_id", "image")
MASK_COLUMNS = ("disc_mask", "cup_mask", "mask")
NUMBER_COLUMNS = ("fovea_x", "fovea_y", "glaucoma")
COLUMNS = (
    *REQUIRED_COLUMNS,
    *MASK_COLUMNS,
    *NUMBER_COLUMNS,
    "split",
    "patient",
    "eye",
    "source",
)

_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "testing": "test",
}
# In a column with empty cells, spreadsheets and pandas write 0.0 and 1.0.
_GLAUCOMA_VALUES = {
    **dict.fromkeys(("0", "0.0", "false", "no"), 0.0),
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1.0),
}
_EYES = {
    "": "",
    **dict.fromkeys(("od", "right", "r"), "OD"),
    **dict.fromkeys(("os", "left", "l"), "OS"),
}
_Value = TypeVar("_Value")


def parse_row(
    number: int, cells: dict[str, str], source_dir: pathlib.Path
) -> tuple[Row | None, list[str]]:
    """Makes a row from its cells.

    Args:
      number: row number in a spreadsheet.
      cells: stripped text by column, for all columns of the header.
      source_dir: directory that relative paths start from.

    Returns:
      The row, or None if it names no photograph; and the problems of its cells. A cell
      with a problem is None in the row, except that the split becomes train.
    """
    problems = []

    def parsed(parse: Callable[..., _Value], *columns: str) -> _Value | None:
        try:
            return parse(*(cells.get(column, "") for column in columns))
        except ValueError as error:
            problems.append(str(error))
            return None

    image_id = parsed(_parse_image_id, "image_id")
    fovea_xy = parsed(_parse_fovea, "fovea_x", "fovea_y")
    glaucoma = parsed(_parse_glaucoma, "glaucoma")
    split = parsed(_parse_split, "split") if "split" in cells else None
    eye = parsed(_parse_eye, "eye")
    masks = {
        column: MaskFile(
            (source_dir / cells[column],), "refuge" if column == "mask" else "binary"
        )
        for column in MASK_COLUMNS
        if cells.get(column)
    }
    if "mask" in masks and len(masks) > 1:
        problems.append("both mask and disc_mask or cup_mask are given; keep only one")
    if not cells["image"]:
        return None, [*problems, "the cell image is empty; name the photograph"]
    row = Row(
        number,
        image_id or "",
        source_dir / cells["image"],
        **masks,
        fovea_xy=fovea_xy,
        glaucoma=glaucoma,
        split=split or SPLITS[0],
        patient=cells.get("patient", ""),
        eye=eye or "",
        source=cells.get("source", ""),
        extra=tuple(pair for pair in cells.items() if pair[0] not in COLUMNS),
    )
    return row, problems


def _parse_image_id(text: str) -> str:
    if not text:
        raise ValueError("the cell image_id is empty; give each photograph a name")
    if problem := unsuitable(text):
        raise ValueError(problem)
    return text


def _parse_fovea(x: str, y: str) -> tuple[float, float] | None:
    if not x and not y:
        return None
    if not x or not y:
        raise ValueError("only one of fovea_x and fovea_y is given")
    return _parse_number("fovea_x", x), _parse_number("fovea_y", y)


def _parse_number(column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{column} {text!r} is not a number such as 812.5 (with a decimal comma, "
            "separate the columns by semicolons)"
        )
    return number


def _parse_glaucoma(text: str) -> float | None:
    if text and text.lower() not in _GLAUCOMA_VALUES:
        raise ValueError(
            f"glaucoma {text!r} is none of 0, 1, false, true, no, yes or empty"
        )
    return _GLAUCOMA_VALUES.get(text.lower())


def _parse_split(text: str) -> str:
    if text.lower() not in _SPLIT_NAMES:
        raise ValueError(f"split {text!r} is none of {words(SPLITS)}")
    return _SPLIT_NAMES[text.lower()]


def _parse_eye(text: str) -> str:
    if text.lower() not in _EYES:
        raise ValueError(f"eye {text!r} is none of OD, OS, right, left or empty")
    return _EYES[text.lower()]


def words(names: Iterable[str]) -> str:
    """Joins names by commas."""
    return ", ".join(names)
