"""Workbooks of a few kilobytes whose cells do not fit into memory."""

import io
import zipfile

import openpyxl
import pytest

from mtl_jax.data import workbooks
from mtl_jax.data.refuge import files, labels
from mtl_jax.data.sources import listing
from mtl_jax.errors import UserError

START = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'


def workbook(rows):
    """The bytes of a workbook whose only sheet has these rows, as XML."""
    plain, changed = io.BytesIO(), io.BytesIO()
    openpyxl.Workbook().save(plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            text = source.read(name)
            if name == "xl/worksheets/sheet1.xml":
                text = f"{START}<sheetData>{rows}</sheetData></worksheet>"
            target.writestr(name, text)
    return changed.getvalue()


BOMBS = {
    "bytes": (f"<!--{' ' * (40 << 20)}-->", "unpacked it has 40 MB, and at most 32"),
    "rows": ('<row r="999999999"><c><v>1</v></c></row>', "more than 1048576 cells"),
    "columns": (80 * '<row><c r="XFD1"><v>1</v></c></row>', "more than 1048576 cells"),
}


def test_rows_and_gaps_are_read():
    file = io.BytesIO(workbook('<row r="3"><c r="C3"><v>1</v></c></row>'))
    (rows,) = ([[*row] for row in rows] for rows in workbooks.sheets(file))
    assert rows == [[], [], [None, None, 1]]


@pytest.mark.parametrize("kind", BOMBS)
def test_a_workbook_that_would_fill_the_memory_is_refused(kind, tmp_path):
    rows, said = BOMBS[kind]
    path = tmp_path / "table.xlsx"
    path.write_bytes(workbook(rows))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=f"is a damaged table .*{said}"):
        list(listing.Listing(tmp_path).records(r"/table\.xlsx", "name"))


def test_a_table_in_an_archive_is_measured_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.json", b" " * (40 << 20))
    (file,) = files.list_files(tmp_path).files
    (problem,) = labels.read_spreadsheet(file).problems
    assert "index.json is a damaged table" in problem
    assert "40 MB" in problem
