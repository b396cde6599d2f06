"""Reads Excel workbooks whose cells fit into memory.

A small file can stand for more: repeated XML shrinks a thousandfold, and the number of
a row or the letters of a column may leave any gap.
"""

import pathlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import openpyxl

# A workbook of 10,000 photographs and 20 columns has 10 MB of XML and 200,000 cells.
LARGEST = 1 << 25
_MOST_CELLS = 1 << 20

Row = Sequence[Any]


def sheets(file: pathlib.Path | BinaryIO) -> Iterator[Iterator[Row]]:
    """Yields the rows of each sheet, a row as the values of its cells.

    Raises:
      ValueError: if the workbook is larger than any table of photographs. openpyxl
        passes on all exceptions of zipfile, the XML parser and its own code.
    """
    with zipfile.ZipFile(file) as archive:
        check_size(sum(member.file_size for member in archive.infolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are about styles.
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    for sheet in book.worksheets:
        # Some programs write a wrong extent, and rows beyond it would be lost.
        sheet.reset_dimensions()
        yield _rows(sheet)
    book.close()


def check_size(size: int) -> None:
    """Refuses a table of more bytes than one of photographs has.

    Raises:
      ValueError: with both sizes.
    """
    if size > LARGEST:
        raise ValueError(
            f"unpacked it has {size >> 20} MB, and at most {LARGEST >> 20} are read"
        )


def _rows(sheet: Any) -> Iterator[Row]:
    cells = 0
    for row in sheet.iter_rows(values_only=True):
        cells += 1 + len(row)
        if cells > _MOST_CELLS:
            raise ValueError(f"it has more than {_MOST_CELLS} cells")
        yield row
