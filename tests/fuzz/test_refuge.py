"""The scanner of REFUGE on trees, tables and archives that people damage."""

import functools
import io
import json
import math
import os
import pathlib
import shutil
import tempfile
import zipfile

import openpyxl
import refuge_trees
from fuzz.damage import changed, damaged, is_readable, odd_texts, odd_values
from hypothesis import given
from hypothesis import strategies as st
from openpyxl.utils.exceptions import IllegalCharacterError

from mtl_jax.data.refuge.files import list_files
from mtl_jax.data.refuge.layout import sort_files
from mtl_jax.data.refuge.official import split_of
from mtl_jax.data.refuge.survey import survey

HEADS = [
    *("ImgName", "Fovea_X", "Fovea_Y", "Glaucoma Label", "Label", "Size_X", "ID", ""),
    *("imgname ", "FOVEA X", "Label(Glaucoma=1)", "Size_Y", "Image", "fovea"),
]
STEMS = ["g0001", "n0001", "V0001", "T0001", "T0400", "T0401", "v0002.JPG", "g0041"]
FOLDERS = [
    *("Training400", "Test400", "val", "Images", "gts", "Glaucoma", "N", "REFUGE2"),
    *("mask", "masks and images", "illustration", "REFUGE2-Test", ".hidden", "é"),
    *("__MACOSX", "a.zip", "train test", "x" * 100, "Non-Glaucoma", "a\nb", "a\x1bb"),
]
EXTENSIONS = ["jpg", "bmp", "png", "JPG", "xlsx", "json", "zip", "rar", "txt", ""]


@functools.cache
def small():
    """Two arrangements, with few photographs: most of the time goes into files."""
    kept = ("g0001", "n0001", "V0001", "T0001", ".xlsx", ".json")
    return [
        {path: data for path, data in tree.items() if any(k in path for k in kept)}
        for tree in (
            refuge_trees.official(),
            refuge_trees.repack("Images", "gts", "bmp"),
        )
    ]


cells = st.sampled_from(STEMS) | st.sampled_from((0, 1, 812.5, None)) | odd_values


@st.composite
def books(draw):
    """A workbook, whose heads may stand anywhere."""
    book = openpyxl.Workbook()
    heads = draw(st.lists(st.sampled_from(HEADS) | odd_texts, max_size=6))
    rows = draw(st.lists(st.lists(cells, max_size=6), max_size=4))
    for row in [*rows[:1], heads, *rows]:
        for column, value in enumerate(row, start=1):
            if isinstance(value, dict | list):
                value = repr(value)
            try:
                book.active.cell(book.active.max_row + (column == 1), column, value)
            # What Excel cannot hold.
            except (ValueError, IllegalCharacterError):
                continue
    return refuge_trees.book_bytes(book)


def usual_json():
    return json.loads(refuge_trees.index_json(refuge_trees.eyes().values()))


tables = st.one_of(
    books(),
    st.deferred(lambda: changed(usual_json(), cells)).map(
        lambda value: json.dumps(value).encode()
    ),
)


def is_a_name(path):
    """Whether files can have this path in a folder, which is what a tree says."""
    parts = path.split("/")
    return not {"", ".", ".."} & {*parts} and all(
        len(part.encode()) <= 255 and "\0" not in part for part in parts
    )


names = st.builds(
    lambda folders, stem, end: "/".join([*folders, f"{stem}.{end}"]),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(STEMS) | st.just("index"),
    st.sampled_from(EXTENSIONS),
)


CHANGES = ("drop", "rename", "double", "damage", "add", "table", "swap")


@st.composite
def trees(draw):
    """A tree whose files were renamed, exchanged, damaged, and joined by others."""
    tree = dict(draw(st.sampled_from(small())))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(sorted(tree)))
        kind = draw(st.sampled_from(CHANGES))
        if kind == "drop":
            del tree[path]
        elif kind in ("rename", "double"):
            content = tree.pop(path) if kind == "rename" else tree[path]
            tree[draw(names.filter(is_a_name))] = content
        elif kind == "damage":
            tree[path] = draw(damaged(tree[path]))
        elif kind == "add":
            tree[draw(names.filter(is_a_name))] = draw(st.binary(max_size=40))
        elif kind == "table":
            tree[draw(st.sampled_from(("index.json", "a.xlsx")))] = draw(tables)
        elif kind == "swap":
            tree[path] = tree[draw(st.sampled_from(sorted(tree)))]
        if not tree:
            break
    return tree


LEADING_OUT = [
    *("../out.jpg", "/out.jpg", "C:\\out.jpg", "a/../../out.jpg", "..\\out.jpg"),
    *("./V0001.jpg", "a//V0001.jpg", "a\\V0001.jpg", "V0001.jpg/", "é/V0001.jpg"),
]


@st.composite
def archived(draw):
    """A tree in an archive, which has odd members and may be damaged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from((0, 8, 12, 14)))) as archive:
        for path, content in draw(trees()).items():
            archive.writestr(path, content)
        for path in draw(st.lists(st.sampled_from(LEADING_OUT), max_size=3)):
            archive.writestr(path, refuge_trees.eyes()["V0001"].jpeg)
    content = buffer.getvalue()
    if draw(st.booleans()):
        content = draw(damaged(content))
    return {"all.zip": content}


def written(tree, folder):
    """Writes what can be written of a tree: files and folders may have one name."""
    for path, content in tree.items():
        try:
            refuge_trees.write({path: content}, folder)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue


def everything(folder):
    return sorted(os.path.join(*where) for where in _walked(folder))


def _walked(folder):
    for place, folders, files in os.walk(folder):
        yield from ((place, name) for name in (*folders, *files))


def scan(tree):
    """Reads a tree, and checks all that is found in it."""
    top = pathlib.Path(tempfile.mkdtemp())
    try:
        source = top / "source"
        source.mkdir()
        written(tree, source)
        before = everything(top)
        listing = list_files(source)
        for file in listing.files:
            assert pathlib.Path(file.path).is_relative_to(source)
            assert not {"", ".", ".."} & {*file.parts}
        layout = sort_files(listing.files)
        assert len(layout.fingerprint) == 64
        found = survey(layout)
        assert everything(top) == before
    finally:
        shutil.rmtree(top)
    sentences = listing.problems + listing.notes + layout.notes + found.problems
    assert all(map(is_readable, sentences))
    stems = [case.stem for case in found.cases]
    assert len({*stems}) == len(stems)
    for case in found.cases:
        assert case.split == split_of(case.stem) is not None
        assert case.glaucoma in (None, 0.0, 1.0)
        assert case.fovea_xy is None or all(map(math.isfinite, case.fovea_xy))
        assert case.sides is None or case.sides[0] <= case.sides[1]
    return found


@given(trees())
def test_trees(tree):
    scan(tree)


@given(archived())
def test_archives(tree):
    scan(tree)


@given(tables)
def test_tables(content):
    """What one table says beside a photograph that it may name."""
    name = "index.json" if content[:1] in (b"{", b"[") else "a.xlsx"
    scan({name: content, "V0001.jpg": refuge_trees.eyes()["V0001"].jpeg})


def test_the_tree_itself_has_all():
    found = scan(small()[0])
    assert len(found.cases) == 4
    assert all(case.mask and case.fovea_xy for case in found.cases)


def test_a_huge_number_costs_its_own_row_alone():
    entries = usual_json()
    entries["0"]["Fovea_X"] = 10**400
    tree = {**small()[1], "train/index.json": json.dumps(entries).encode()}
    assert [case.fovea_xy is None for case in scan(tree).cases] == [True] + 3 * [False]
