"""The scanner of manifests on tables as people write and damage them."""

import csv
import io
import math

from fuzz.damage import damaged, odd_texts, outcome, unlike
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.data.folder import manifest
from mtl_jax.data.folder.rows import COLUMNS
from mtl_jax.data.schema import SPLITS
from mtl_jax.data.sources.rows import identity

USUAL = {
    "image_id": [f"eye {n}" for n in range(6)],
    "image": ["a.png", "b.png", "c.png", "sub/d.png"],
    "disc_mask": ["", "disc.png"],
    "cup_mask": ["", "cup.png"],
    "mask": ["", "both.bmp"],
    "fovea_x": ["", "10", "812.5"],
    "fovea_y": ["", "10", "0.25"],
    "glaucoma": ["", "0", "1", "0.0", "1.0", "yes", "No"],
    "split": ["train", "validation", "test", "Training", "val"],
    "patient": ["", "p1", "p2"],
    "eye": ["", "OD", "os", "Left"],
    "source": ["", "here"],
}


@st.composite
def tables(draw):
    """Heads and rows of texts, mostly as they should be."""
    heads = draw(st.permutations(COLUMNS))[: draw(st.integers(2, 12))]
    heads = list(dict.fromkeys(["image_id", "image", *heads]))
    if draw(st.integers(0, 2)) == 0:
        others = st.lists(odd_texts | unlike(COLUMNS), max_size=2)
        heads = draw(st.permutations(heads + draw(others)))
    rows = []
    for number in range(draw(st.integers(0, 5))):
        row = [draw(st.sampled_from(USUAL.get(head, ["", "7"]))) for head in heads]
        if draw(st.booleans()):
            fresh = {"image_id": f"id{number}", "image": f"{number}.png"}
            row = [fresh.get(h, c) for h, c in zip(heads, row, strict=True)]
        if draw(st.integers(0, 3)) == 0:
            row[draw(st.integers(0, len(row) - 1))] = draw(odd_texts)
        rows.append(row)
    if draw(st.integers(0, 5)) == 0 and rows:
        rows[-1] = rows[-1][: draw(st.integers(0, 12))] + draw(
            st.lists(odd_texts, max_size=2)
        )
    return heads, rows


def written(heads, rows, delimiter, end, quoting, start):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([heads, *rows])
    return (start + text.getvalue()).encode("utf-8", "surrogatepass")


forms = st.tuples(
    st.sampled_from(",;\t"),
    st.sampled_from(("\n", "\r\n", "\r")),
    st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    st.sampled_from(("", "\ufeff", "\n", "\ufeff\ufeff", " \n\t\n")),
)


def read(folder, content):
    """Reads a manifest; returns None if it is refused rightly."""
    path = folder / "manifest.csv"
    path.write_bytes(content)
    contents, sentence = outcome(manifest.read, path, folder)
    if contents is None:
        assert str(path) in sentence
        return None
    check(contents)
    return contents


def check(contents):
    """Whether the rows are as `Row` describes them."""
    numbers = [row.number for row in contents.rows]
    assert numbers == sorted(set(numbers))
    for row in contents.rows:
        assert row.split in SPLITS
        assert row.glaucoma in (None, 0.0, 1.0)
        assert row.eye in ("", "OD", "OS")
        assert row.fovea_xy is None or all(map(math.isfinite, row.fovea_xy))
        assert not {"/", "\\", "\x00"} & set(row.image_id)
        assert not row.image_id.startswith(".")
        assert len(row.image_id.encode()) <= 200
    assert all(one.number >= 1 and one.text for one in contents.problems)
    if contents.problems:
        return
    assert all(row.image_id for row in contents.rows)
    for key in ("image_id", "image"):
        values = [getattr(row, key) for row in contents.rows]
        same = {identity(v) if key == "image" else v for v in values}
        assert len(same) == len(values)
    split_of = {}
    for row in contents.rows:
        assert not (row.mask and (row.disc_mask or row.cup_mask))
        assert (
            not row.patient or split_of.setdefault(row.patient, row.split) == row.split
        )


@given(tables(), forms)
def test_no_annotation_is_lost(tmp_path_factory, table, form):
    heads, rows = table
    folder = tmp_path_factory.getbasetemp() / "manifests"
    folder.mkdir(exist_ok=True)
    contents = read(folder, written(heads, rows, *form))
    if contents is None or contents.problems:
        return
    texts = [[cell.strip() for cell in row] for row in rows]
    texts = [row for row in texts if any(row)]
    assert len(contents.rows) == len(texts)
    keys = [head.strip().lower() for head in heads]
    for row, cells in zip(contents.rows, texts, strict=True):
        cell = dict(zip(keys, cells + [""] * len(keys), strict=False))
        assert row.image_id == cell["image_id"]
        assert row.image == folder / cell["image"]
        assert row.patient == cell.get("patient", "")
        assert row.source == cell.get("source", "")
        for key in ("disc_mask", "cup_mask", "mask"):
            found = getattr(row, key)
            named = cell.get(key, "")
            assert (found.paths if found else ()) == (
                (folder / named,) if named else ()
            )
        for value, key in [(row.glaucoma, "glaucoma"), (row.eye or None, "eye")]:
            assert (value is not None) == bool(cell.get(key))
        said = [cell.get("fovea_x", ""), cell.get("fovea_y", "")]
        if form[0] == ";":
            said = [text.replace(",", ".") for text in said]
        assert row.fovea_xy == (tuple(map(float, said)) if any(said) else None)
        if "split" in cell:
            assert row.split[:3] == cell["split"].lower()[:3]
        assert dict(row.extra) == {
            # Empty columns at the right have no head.
            key: text
            for key, text in cell.items()
            if key and key not in COLUMNS
        }


@given(st.data())
def test_damaged_bytes(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "manifests"
    folder.mkdir(exist_ok=True)
    whole = written(*data.draw(tables()), *data.draw(forms))
    encoding = data.draw(st.sampled_from(("utf-8", "utf-8", "utf-16", "latin-1")))
    whole = whole.decode("utf-8").encode(encoding, "replace")
    read(folder, data.draw(damaged(whole)))
