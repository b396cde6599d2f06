"""Reads a CSV manifest of photographs and annotations strictly.

All problems of the table and of its files are reported at once: a silently dropped
label costs more than an error message.
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterable

import numpy as np

from mtl_jax.data import building, images
from mtl_jax.data.folder.rows import (
    COLUMNS,
    REQUIRED_COLUMNS,
    ManifestRow,
    Problem,
    parse_row,
    words,
)
from mtl_jax.data.schema import MIN_SIZE
from mtl_jax.errors import UserError

_LONGEST_REPORT = 50
_COMBINED_VALUES = "0 cup, 128 rim, 255 background"
_BINARY_VALUES = "0 outside, 255 inside"


def read_manifest(
    manifest_path: images.PathLike, source_dir: images.PathLike
) -> list[ManifestRow]:
    """Reads a manifest and decodes every file it names.

    Commas, semicolons or tabs separate columns; an empty cell means "not annotated".
    The columns `image_id` and `image` are required, the others of `COLUMNS` are
    optional. Without `split`, `default_splits` assigns the photographs.

    An empty cup mask is an annotation: no cup is visible. An empty disc mask is a
    problem, because most often its values follow another convention. A mask with every
    pixel inside is a problem, and so is one photograph in two rows.

    Args:
      manifest_path: the CSV file, UTF-8.
      source_dir: directory that relative paths in the manifest start from.

    Returns:
      The rows in the manifest's order. All their files can be read.

    Raises:
      UserError: with a list of all problems and their rows.
    """
    rows, problems = parse_manifest(manifest_path, source_dir)
    found = building.parallel_map(
        file_problems, rows, "checking files", processes=False
    )
    for row, texts in zip(rows, found, strict=True):
        problems += [Problem(row.number, text) for text in texts]
    if problems:
        raise UserError(_report(manifest_path, problems))
    return rows


def parse_manifest(
    manifest_path: images.PathLike, source_dir: images.PathLike
) -> tuple[list[ManifestRow], list[Problem]]:
    """Reads a manifest without opening the files it names.

    Args:
      manifest_path: as for `read_manifest`.
      source_dir: as for `read_manifest`.

    Returns:
      The rows that name a photograph, and the problems of the table. A cell with a
      problem is None in its row.

    Raises:
      UserError: if the table as a whole is unusable.
    """
    path = pathlib.Path(manifest_path)
    header, records = _read_table(path)
    problems = _header_problems(header)
    missing = [column for column in REQUIRED_COLUMNS if column not in header]
    if missing:
        raise UserError(_report(path, problems))
    if not records:
        raise UserError(f"{path} has a header but no rows; list the photographs in it.")
    rows = []
    for number, record in records:
        if any(record[len(header) :]):
            problems.append(Problem(number, "more cells than the header has columns"))
        padded = record + [""] * (len(header) - len(record))
        cells = dict(zip(header, padded, strict=False))
        row, texts = parse_row(number, cells, pathlib.Path(source_dir))
        problems += [Problem(number, text) for text in texts]
        if row is not None:
            rows.append(row)
    problems += _repetitions(rows, "image_id") + _repetitions(rows, "image")
    if "split" not in header:
        splits = default_splits(row.image_id for row in rows)
        rows = [dataclasses.replace(r, split=splits[r.image_id]) for r in rows]
    return rows, problems


def default_splits(image_ids: Iterable[str]) -> dict[str, str]:
    """Assigns photographs at random: 60 % train, 20 % validation, 20 % test.

    The same identifiers always give the same splits, in any order.
    """
    names = sorted(set(image_ids))
    # RandomState's streams are frozen for all versions of NumPy; Generator's are not.
    order = np.random.RandomState(0).permutation(len(names))
    held_out = round(0.2 * len(names))
    splits = ["validation"] * held_out + ["test"] * held_out
    splits += ["train"] * (len(names) - len(splits))
    return {names[i]: split for i, split in zip(order, splits, strict=True)}


def read_masks(row: ManifestRow) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Reads the optic disc and cup of a row, each uint8 [H, W], 1 inside, or None."""
    if row.mask is not None:
        return images.disc_and_cup_masks(images.read_mask(row.mask))
    disc, cup = (
        None if path is None else images.binary_mask(images.read_mask(path))
        for path in (row.disc_mask, row.cup_mask)
    )
    return disc, cup


def file_problems(row: ManifestRow) -> list[str]:
    """Decodes the files of a row and lists their problems."""
    problems = []
    size = None
    try:
        size = images.read_photograph(row.image).shape[:2]
    except UserError as error:
        problems.append(str(error))
    if size is not None:
        problems += _photograph_problems(row, size)
    for column, path in row.mask_files.items():
        try:
            grey = images.read_mask(path)
        except UserError as error:
            problems.append(str(error))
        else:
            problems += _mask_problems(column, path, grey, size)
    return problems


def _photograph_problems(row: ManifestRow, size: tuple[int, int]) -> list[str]:
    height, width = size
    problems = []
    if min(size) < MIN_SIZE:
        problems.append(
            f"{row.image} has {width} x {height} pixels; at least {MIN_SIZE} a side are"
            " needed."
        )
    if row.fovea_xy is not None:
        x, y = row.fovea_xy
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            problems.append(
                f"the fovea ({x:g}, {y:g}) lies outside {row.image}, which has {width}"
                f" x {height} pixels; give x (column), y (row) in pixels of this file."
            )
    return problems


def _mask_problems(
    column: str, path: pathlib.Path, grey: np.ndarray, size: tuple[int, int] | None
) -> list[str]:
    problems = []
    if size is not None and grey.shape != size:
        problems.append(
            f"{path} has {grey.shape[1]} x {grey.shape[0]} pixels, its photograph"
            f" {size[1]} x {size[0]}; a mask must fit pixel by pixel."
        )
    if column == "mask":
        inside, values = images.disc_and_cup_masks(grey)[0], _COMBINED_VALUES
    else:
        inside, values = images.binary_mask(grey), _BINARY_VALUES
    if inside.all():
        problems.append(
            f"every pixel of {path} is inside; its values must be {values}."
        )
    elif not inside.any() and (column != "cup_mask" or grey.max() > 0):
        problems.append(
            f"no pixel of {path} is inside (its largest value is {grey.max()}); its"
            f" values must be {values}; leave the cell empty if it is not annotated."
        )
    return problems


def _read_table(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads the header, and the rows that are not blank with their numbers."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the CSV file with the labels.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8 text; save it as 'CSV UTF-8 (comma delimited)'."
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty; it needs the columns {words(COLUMNS)}.")
    first_line = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=first_line.count)
    try:
        lines = io.StringIO(text, newline="")
        table = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not well-formed CSV ({error}).") from None
    table = [[cell.strip() for cell in record] for record in table]
    records = [(i, record) for i, record in enumerate(table, start=1) if any(record)]
    if not records:
        raise UserError(f"{path} is empty; it needs the columns {words(COLUMNS)}.")
    header = [name.lower() for name in records[0][1]]
    while header[-1] == "":
        header.pop()
    return header, records[1:]


def _header_problems(header: list[str]) -> list[Problem]:
    texts = [f"there is no column {c}" for c in REQUIRED_COLUMNS if c not in header]
    for position, name in enumerate(header):
        if name not in COLUMNS:
            texts.append(f"unknown column {name!r}; known are {words(COLUMNS)}")
        elif name in header[:position]:
            texts.append(f"the column {name} is given twice")
    return [Problem(1, text) for text in texts]


def _repetitions(rows: list[ManifestRow], field: str) -> list[Problem]:
    first: dict[str | pathlib.Path, int] = {}
    problems = []
    for row in rows:
        value = getattr(row, field)
        if value in first:
            problems.append(
                Problem(row.number, f"{field} {value} is also in row {first[value]}")
            )
        elif value:
            first[value] = row.number
    return problems


def _report(path: images.PathLike, problems: list[Problem]) -> str:
    path = pathlib.Path(path)
    ordered = sorted(problems, key=lambda problem: problem.number)
    lines = [f"{path.name} row {p.number}: {p.text}" for p in ordered]
    if len(lines) > _LONGEST_REPORT:
        more = len(lines) - _LONGEST_REPORT
        lines = [*lines[:_LONGEST_REPORT], f"and {more} more"]
    count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
    return "\n  ".join([f"{path} has {count}:", *lines])
