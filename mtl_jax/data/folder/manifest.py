"""Reads a CSV manifest of photographs and annotations strictly.

All problems of the table and of its files are reported at once: a silently dropped
label costs more than an error message.
"""

import csv
import difflib
import io
import pathlib

from mtl_jax.data import images
from mtl_jax.data.folder.rows import (
    COLUMNS,
    MASK_COLUMNS,
    NUMBER_COLUMNS,
    REQUIRED_COLUMNS,
    parse_row,
    words,
)
from mtl_jax.data.sources import splits
from mtl_jax.data.sources.rows import (
    Contents,
    Problem,
    divided_patients,
    repetitions,
    report,
)
from mtl_jax.errors import UserError

_ANNOTATION_WORDS = {
    word for column in (*MASK_COLUMNS, *NUMBER_COLUMNS) for word in column.split("_")
}


def read(manifest_path: images.PathLike, source_dir: images.PathLike) -> Contents:
    """Reads a manifest without opening the files it names.

    Commas, semicolons or tabs separate columns; an empty cell means "not annotated".
    Where semicolons do, a number may have a decimal comma, as spreadsheets write it.
    The columns `image_id` and `image` are required, the others of `COLUMNS` are
    optional. Without `split`, `splits.assign` draws splits, patient by patient. Other
    columns are kept as text, unless their names are like those of `COLUMNS`.

    Args:
      manifest_path: the CSV file, UTF-8.
      source_dir: directory that relative paths in the manifest start from.

    Returns:
      The rows that name a photograph, in the manifest's order, and the problems of the
      table. A cell with a problem is None in its row.

    Raises:
      UserError: if the table as a whole is unusable.
    """
    path = pathlib.Path(manifest_path)
    header, records = _read_table(path)
    contents = Contents([], str(path), table=path.name)
    contents.problems += _header_problems(header)
    if others := [name for name in header if name not in COLUMNS]:
        contents.notes.append(
            f"the columns {words(others)} are kept as they are, for per_image.csv; "
            f"those that are read are {words(COLUMNS)}."
        )
    if not set(REQUIRED_COLUMNS) <= set(header):
        raise UserError(report(contents))
    if not records:
        raise UserError(f"{path} has a header but no rows; list the photographs in it.")
    for number, record in records:
        texts = []
        if any(record[len(header) :]):
            texts.append("more cells than the header has columns")
        padded = record + [""] * (len(header) - len(record))
        cells = dict(zip(header, padded, strict=False))
        row, found = parse_row(number, cells, pathlib.Path(source_dir))
        contents.problems += [Problem(number, text) for text in texts + found]
        if row is not None:
            contents.rows.append(row)
    for field in ("image_id", "image"):
        contents.problems += repetitions(contents.rows, field)
    if "split" not in header:
        contents.rows = splits.assign(contents.rows)
    for patient, rows in divided_patients(contents.rows).items():
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(row.split, row.number)
        there = " and ".join(f"{split} (row {n})" for split, n in first.items())
        contents.problems.append(
            Problem(
                rows[0].number,
                f"patient {patient} has photographs in {there}; put all into one split",
            )
        )
    return contents


def _read_table(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads the header, and the rows that are not blank with their numbers."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the CSV file with the labels.")
    try:
        # Programs that do not see a byte order mark write a second one.
        text = path.read_text(encoding="utf-8").lstrip("\ufeff")
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
    if delimiter == ";":
        for _, record in records[1:]:
            for i, name in enumerate(header[: len(record)]):
                if name in NUMBER_COLUMNS:
                    record[i] = record[i].replace(",", ".")
    return header, records[1:]


def _header_problems(header: list[str]) -> list[Problem]:
    texts = [f"there is no column {c}" for c in REQUIRED_COLUMNS if c not in header]
    is_complete = not texts
    for position, name in enumerate(header):
        # A misspelt column would be lost as an annotation.
        is_alike = _ANNOTATION_WORDS & {*name.split("_")} or (
            difflib.get_close_matches(name, COLUMNS, cutoff=0.8)
        )
        if name not in COLUMNS and (is_alike or not name or not is_complete):
            texts.append(f"unknown column {name!r}; known are {words(COLUMNS)}")
        elif name in header[:position]:
            texts.append(f"the column {name} is given twice")
    return [Problem(1, text) for text in texts]
