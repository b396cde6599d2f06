"""A photograph of a source with its annotations, and what may be wrong with it."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from mtl_jax.data.sources.masks import MaskFile

_LONGEST_REPORT = 10
_UNSAFE = re.compile(r"^\.|[/\\\x00-\x1f\x7f]")


@dataclasses.dataclass(frozen=True)
class Row:
    """One photograph and its annotations; None stands for "not annotated".

    Attributes:
      number: place in its source; of a manifest, the row in a spreadsheet.
      image_id: unique name, usable as a file name.
      image: the photograph.
      disc_mask: mask of the optic disc.
      cup_mask: mask of the optic cup.
      mask: one file with both in place of these two.
      fovea_xy: (x, y) = (column, row) in native pixels.
      glaucoma: 1 for glaucoma, 0 for healthy.
      split: one of `schema.SPLITS`; empty until it is drawn.
      patient: unique name; empty if unknown.
      eye: `OD` (right), `OS` (left), or empty.
      source: name that metrics are broken down by.
      extra: other columns of a manifest, (name, text), for the results.
    """

    number: int
    image_id: str
    image: pathlib.Path
    disc_mask: MaskFile | None = None
    cup_mask: MaskFile | None = None
    mask: MaskFile | None = None
    fovea_xy: tuple[float, float] | None = None
    glaucoma: float | None = None
    split: str = ""
    patient: str = ""
    eye: str = ""
    source: str = ""
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def mask_files(self) -> dict[str, MaskFile]:
        """The annotated masks, by attribute."""
        named = {
            "disc_mask": self.disc_mask,
            "cup_mask": self.cup_mask,
            "mask": self.mask,
        }
        return {name: mask for name, mask in named.items() if mask is not None}

    @property
    def labels(self) -> tuple[bool, ...]:
        """Which annotations there are, in the order of `annotations.LABELS`."""
        disc, cup = (
            mask is not None or self.mask is not None
            for mask in (self.disc_mask, self.cup_mask)
        )
        return self.glaucoma is not None, disc, cup, self.fovea_xy is not None

    @property
    def files(self) -> list[pathlib.Path]:
        """The photograph and the files of its masks."""
        return [self.image, *(p for m in self.mask_files.values() for p in m.paths)]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something to correct in one row of a source.

    Attributes:
      number: of the row.
      text: what is wrong.
      kind: of `checks.KINDS`, if it may be meant.
    """

    number: int
    text: str
    kind: str = ""


@dataclasses.dataclass
class Contents:
    """What a source holds, before its files are opened.

    Attributes:
      rows: the photographs.
      name: the table or folder.
      table: name of the table that `Row.number` counts the rows of, if there is one.
      problems: what is wrong.
      missing: sentences about annotations that others of the source have.
      notes: sentences about what is done with the source's peculiarities.
    """

    rows: list[Row]
    name: str
    table: str = ""
    problems: list[Problem] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def read_masks(
    row: Row, size: tuple[int, int]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Reads the optic disc and cup of a row, each uint8 [H, W], 1 inside, or None.

    Args:
      row: the photograph.
      size: its (height, width).
    """
    if row.mask is not None:
        levels = row.mask.levels(row.mask.values(size))
        return (levels > 0).astype(np.uint8), (levels > 1).astype(np.uint8)
    disc, cup = (
        None if mask is None else mask.levels(mask.values(size))
        for mask in (row.disc_mask, row.cup_mask)
    )
    return disc, cup


def unsuitable(image_id: str) -> str:
    """Says why an `image_id` cannot be a file's name; empty if it can."""
    size = len(image_id.encode("utf-8", "surrogateescape"))
    if not _UNSAFE.search(image_id) and 0 < size <= 200:
        return ""
    return (
        f"image_id {image_id!r} cannot be a file name; avoid slashes, control"
        " characters and a leading dot, and use at most 200 bytes"
    )


def repetitions(rows: Sequence[Row], field: str) -> list[Problem]:
    """The rows whose `field` is that of an earlier row, or another path to its file."""
    first: dict[object, int] = {}
    problems = []
    for row in rows:
        value = getattr(row, field)
        same = identity(value) if isinstance(value, pathlib.Path) else value
        if same in first:
            problems.append(
                Problem(row.number, f"{field} {value} is also in row {first[same]}")
            )
        elif value:
            first[same] = row.number
    return problems


def identity(path: pathlib.Path) -> object:
    """Is equal for all paths to a file, links included."""
    try:
        stat = path.stat()
    # Some names cannot be of a file.
    except (OSError, ValueError):
        return path
    return stat.st_dev, stat.st_ino


def divided_patients(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The patients with photographs in several splits, with their rows."""
    by_patient: dict[str, list[Row]] = {}
    for row in rows:
        if row.patient and row.split:
            by_patient.setdefault(row.patient, []).append(row)
    return {
        patient: members
        for patient, members in by_patient.items()
        if len({row.split for row in members}) > 1
    }


def report(contents: Contents) -> str:
    """Lists the problems of a source by row, after a first line with their number."""
    ordered = sorted(contents.problems, key=lambda problem: problem.number)
    where = f"{contents.table} row {{}}: " if contents.table else ""
    return listed(contents.name, [where.format(p.number) + p.text for p in ordered])


def some(names: Iterable[str], shown: int = 3) -> str:
    """Joins the first few of many names, and tells how many more there are."""
    names = list(names)
    if len(names) <= shown + 1:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"


def without(label: str, names: Sequence[str], total: int) -> list[str]:
    """A sentence about the photographs that lack an annotation, if there are any."""
    if not names:
        return []
    return [
        f"no {label} for {len(names)} of {total} photographs ({some(names)}); the "
        "published set has it for each."
    ]


def listed(name: str, lines: Sequence[str]) -> str:
    """Lists the problems of a file or folder after a line with their number."""
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    if len(lines) > _LONGEST_REPORT:
        more = len(lines) - _LONGEST_REPORT
        lines = [*lines[:_LONGEST_REPORT], f"and {more} more"]
    return "\n  ".join([f"{name} has {count}:", *lines])
