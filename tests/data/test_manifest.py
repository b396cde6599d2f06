import dataclasses
import hashlib
import os
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtl_jax.data.folder import manifest
from mtl_jax.data.folder.rows import SPLITS, parse_row
from mtl_jax.data.sources import checks, rows, splits
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Row
from mtl_jax.errors import UserError


@pytest.fixture
def source(tmp_path):
    """A directory with two photographs (64 x 48) and masks of several kinds."""
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.PNG"):
        picture = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / name)
    disc = np.zeros((48, 64), np.uint8)
    disc[10:30, 20:40] = 255
    cup = np.zeros_like(disc)
    cup[15:25, 25:35] = 255
    masks = {
        "disc.png": disc,
        "cup.png": cup,
        "labels.png": disc // 255,
        "both.bmp": 255 - disc // 255 * 127 - cup // 255 * 128,
        "empty.png": np.zeros_like(disc),
        "full.png": np.full_like(disc, 255),
        "three_labels.png": disc // 255 + cup // 255,
        "turned.png": disc.T.copy(),
    }
    for name, mask in masks.items():
        Image.fromarray(mask).save(tmp_path / name)
    return tmp_path


def write(source, text, encoding="utf-8"):
    path = source / "manifest.csv"
    path.write_bytes(text.encode(encoding))
    return path


def read_manifest(path, source, accept=()):
    """The rows, after all their files are checked."""
    contents = manifest.read(path, source)
    checks.check([contents], frozenset(accept))
    return contents.rows


def problems_of(source, text):
    with pytest.raises(UserError) as caught:
        read_manifest(write(source, text), source)
    return str(caught.value)


@pytest.mark.parametrize("marks", ["\ufeff", "\ufeff\ufeff"])
def test_byte_order_marks_are_no_part_of_the_first_head(source, marks):
    """A second one, before a quotation mark, made the split another column."""
    text = marks + '"split","image_id","image"\ntest,a,a.jpg\n'
    (row,) = read_manifest(write(source, text), source)
    assert row.split == "test"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_reads_what_spreadsheets_write(source, separator, newline, encoding):
    lines = [
        "Image_ID,image,disc_mask,fovea_x,fovea_y,glaucoma,split",
        "ä,a.jpg,disc.png,1.5,47.5,Yes,Training",
        "b, b.PNG ,,,,0.0,VAL",
        ",,,,,,",
        "",
    ]
    text = newline.join(lines).replace(",", separator)
    if separator == ";":
        text = text.replace(".5", ",5").replace("0.0", "0,0")
    first, second = read_manifest(write(source, text, encoding), source)
    assert first == Row(
        2,
        "ä",
        source / "a.jpg",
        disc_mask=MaskFile((source / "disc.png",)),
        fovea_xy=(1.5, 47.5),
        glaucoma=1.0,
        split="train",
    )
    assert second == Row(3, "b", source / "b.PNG", glaucoma=0.0, split="validation")


def test_other_columns_are_kept_and_said(source):
    text = "image_id,image,Age,operator\na,a.jpg,63,\nb,b.PNG,,=x\n"
    contents = manifest.read(write(source, text), source)
    assert not contents.problems
    assert [row.extra for row in contents.rows] == [
        (("age", "63"), ("operator", "")),
        (("age", ""), ("operator", "=x")),
    ]
    assert contents.notes[0].startswith("the columns age, operator are kept")


def test_rows_are_numbered_as_in_a_spreadsheet(source):
    text = 'image_id,image\n\n"two\nlines",a.jpg\nb,missing.png\n'
    report = problems_of(source, text)
    assert "manifest.csv row 3: image_id 'two\\nlines'" in report
    assert "manifest.csv row 4:" in report
    assert "missing.png does not exist" in report


def test_absolute_paths_and_short_rows(source, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    text = f"image_id,image,glaucoma\na,{source / 'a.jpg'}\n"
    (row,) = read_manifest(write(source, text), elsewhere)
    assert row.image == source / "a.jpg"
    assert row.glaucoma is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("image_id,image\n", "no rows"),
        ("image_id,image\n,\n", "no rows"),
        ("image,glaucoma\na.jpg,1\n", "row 1: there is no column image_id"),
        (
            "image_id,file\na,a.jpg\n",
            "row 1: unknown column 'file'; known are",
        ),
        (
            "image_id,image,image\na,a.jpg,a.jpg\n",
            "row 1: the column image is",
        ),
        ('image_id,image\na,"a.jpg\n', "not well-formed"),
        ("image_id,image\na,a.jpg,1\n", "row 2: more cells"),
        ("image_id,image,Cup_maks\na,a.jpg,\n", "row 1: unknown column 'cup_maks'"),
        ("image_id,image,fovea\na,a.jpg,\n", "row 1: unknown column 'fovea'"),
        ("image_id,image,disc_png\na,a.jpg,\n", "row 1: unknown column 'disc_png'"),
        ("image_id,image,split\na,a.jpg\n", "row 2: split '' is none of"),
    ],
)
def test_malformed_tables(source, text, reason):
    assert reason in problems_of(source, text)


def test_missing_manifest_and_wrong_encoding(source):
    with pytest.raises(UserError, match=r"manifest\.csv does not exist"):
        read_manifest(source / "manifest.csv", source)
    path = write(source, "image_id,image\nä,a.jpg\n", "latin-1")
    with pytest.raises(UserError, match=r"manifest\.csv is not UTF-8"):
        read_manifest(path, source)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"image_id": "x/y"}, "cannot be a file name"),
        ({"image_id": "x\\y"}, "cannot be a file name"),
        ({"image_id": ".."}, "cannot be a file name"),
        ({"image_id": "x" * 201}, "cannot be a file name"),
        ({"image_id": ""}, "image_id is empty"),
        ({"image": ""}, "image is empty"),
        ({"mask": "m", "disc_mask": "d"}, "both mask and"),
        ({"mask": "m", "cup_mask": "c"}, "both mask and"),
        ({"fovea_x": "1", "fovea_y": ""}, "only one of"),
        ({"fovea_x": "1", "fovea_y": "nan"}, "fovea_y 'nan' is not a number"),
        ({"fovea_x": "inf", "fovea_y": "1"}, "fovea_x 'inf' is not a number"),
        ({"fovea_x": "1,5", "fovea_y": "1"}, "fovea_x '1,5' is not a number"),
        ({"glaucoma": "2"}, "glaucoma '2' is none of"),
        ({"split": "dev"}, "split 'dev' is none of"),
        ({"split": ""}, "split '' is none of"),
        ({"eye": "third"}, "eye 'third' is none of"),
    ],
)
def test_bad_cells(tmp_path, cells, reason):
    cells = {"image_id": "a", "image": "a.jpg", **cells}
    _, problems = parse_row(2, cells, tmp_path)
    assert len(problems) == 1
    assert reason in problems[0]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"fovea_x": "63.6", "fovea_y": "0"}, "fovea (63.6, 0) lies outside"),
        ({"fovea_x": "0", "fovea_y": "-0.6"}, "lies outside"),
        ({"disc_mask": "turned.png"}, "has 48 x 64 pixels, its photograph 64 x 48"),
        ({"disc_mask": "empty.png"}, "has no pixel inside"),
        ({"disc_mask": "three_labels.png"}, "its largest value is 2"),
        ({"cup_mask": "three_labels.png"}, "its largest value is 2"),
        ({"disc_mask": "full.png"}, "covers 100% of"),
        ({"mask": "full.png"}, "no pixel of"),
        ({"mask": "three_labels.png"}, "covers 100% of"),
        ({"mask": "manifest.csv"}, "is not an image"),
    ],
)
def test_bad_files(source, cells, reason):
    columns, values = zip(*cells.items(), strict=True)
    text = f"image_id,image,{','.join(columns)}\na,a.jpg,{','.join(values)}\n"
    report = problems_of(source, text)
    assert report.count("row 2:") == 1
    assert reason in report


def test_small_image_is_a_problem(source):
    Image.new("RGB", (200, 31)).save(source / "small.png")
    report = problems_of(source, "image_id,image\na,small.png\n")
    assert "row 2:" in report
    assert "200 x 31" in report


def test_all_problems_are_reported_at_once_in_order(source):
    text = (
        "image_id,image,disc_mask,glaucoma,splits\n"
        "a,a.jpg,nowhere.png,0,\n"
        "b,b.PNG,disc.png,maybe,\n"
        "b,c.png,turned.png,1,\n"
        "d,a.jpg,,1,\n"
    )
    lines = problems_of(source, text).splitlines()
    assert lines[0] == f"{source / 'manifest.csv'} has 6 problems:"
    expected = [
        "row 1: unknown column 'splits'",
        "row 2: ",
        "row 3: glaucoma 'maybe'",
        "row 4: image_id b is also in row 3",
        "row 4: ",
        "row 5: image ",
    ]
    assert len(lines) == 1 + len(expected)
    for line, start in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"  manifest.csv {start}")
    assert "nowhere.png does not exist" in lines[2]
    assert "c.png does not exist" in lines[5]


def test_long_reports_are_cut(source):
    table = "".join(f"{i},no{i}.png\n" for i in range(73))
    lines = problems_of(source, "image_id,image\n" + table).splitlines()
    assert "73 problems" in lines[0]
    assert len(lines) == 12
    assert lines[-1].strip() == "and 63 more"


def test_masks_of_every_kind_agree(source):
    text = (
        "image_id,image,disc_mask,cup_mask,mask\n"
        "a,a.jpg,disc.png,cup.png,\n"
        "b,b.PNG,labels.png,empty.png,\n"
    )
    first, second = read_manifest(write(source, text), source, ["empty_mask"])
    disc, cup = rows.read_masks(first, (48, 64))
    assert (disc.sum(), cup.sum()) == (400, 100)
    labels, empty = rows.read_masks(second, (48, 64))
    assert (labels == disc).all()
    assert empty.sum() == 0

    text = "image_id,image,mask\na,a.jpg,both.bmp\nb,b.PNG,\n"
    both, neither = read_manifest(write(source, text), source)
    for mask, expected in zip(
        rows.read_masks(both, (48, 64)), (disc, cup), strict=True
    ):
        assert (mask == expected).all()
    assert rows.read_masks(neither, (48, 64)) == (None, None)


def photographs(patients):
    """Rows without files: name i, of the i-th patient."""
    return [
        Row(i, f"p{i}", pathlib.Path(f"{i}.png"), patient=patient)
        for i, patient in enumerate(patients)
    ]


def split_of(found):
    return {row.image_id: row.split for row in found}


def test_default_splits_are_dealt_by_name():
    there = photographs([""] * 1000)
    found = split_of(splits.assign(there))
    assert found == split_of(splits.assign(there[::-1]))
    counts = {name: list(found.values()).count(name) for name in SPLITS}
    # Binomial, with a standard deviation of 13 to 15.
    expected = {"train": 600, "validation": 200, "test": 200}
    assert counts == pytest.approx(expected, abs=60)
    pinned = [13, 17, 22, 29, 31, 32, 38, 39, 40, 49]
    # Another hash would move photographs from test to train unnoticed.
    assert [i for i in range(50) if found[f"p{i}"] == "test"] == pinned


# The first 300 are of 100 patients.
MANY = photographs([f"patient {i % 100}" * (i < 300) for i in range(1000)])


@given(st.integers(0, 2**32 - 1), st.integers(150, 300), st.integers(0, 999))
def test_another_photograph_moves_no_other(seed, count, another):
    """Also one of a patient who is there."""
    numbers = np.random.default_rng(seed).permutation(1000)[:count].tolist()
    before = split_of(splits.assign([MANY[i] for i in numbers]))
    after = split_of(splits.assign([MANY[i] for i in {*numbers, another}]))
    assert {**after, **before} == after


@given(st.lists(st.integers(-3, 15), min_size=5, max_size=60), st.randoms())
def test_no_patient_is_in_two_default_splits(numbers, random):
    """A negative number stands for an unknown patient."""
    there = photographs(["" if n < 0 else f"patient {n}" for n in numbers])
    found = splits.assign(there)
    assert [r.image_id for r in found] == [r.image_id for r in there]
    groups = {row.patient or row.image_id for row in there}
    assert len({r.split for r in found}) == min(3, len(groups))
    assert {r.split for r in found} <= set(SPLITS)
    assert not rows.divided_patients(found)
    shuffled = list(there)
    random.shuffle(shuffled)
    assert split_of(splits.assign(shuffled)) == split_of(found)


def test_names_that_are_not_utf8_are_dealt_by_their_bytes():
    names = [b"bad\xff", b"worse\xfe\xff", "œil".encode(), b"plain"]
    for name in names:
        wanted = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
        assert splits._lot(os.fsdecode(name)) == wanted / 2**56
    there = photographs(list(map(os.fsdecode, names)))
    assert {row.split for row in splits.assign(there)} == set(SPLITS)


@given(st.lists(st.integers(0, 15), min_size=5, max_size=60))
def test_validation_is_drawn_from_training_alone(numbers):
    there = [
        dataclasses.replace(row, split="test" if n < 5 else "train")
        for row, n in zip(
            photographs([f"patient {n}" for n in numbers]), numbers, strict=True
        )
    ]
    found = splits.assign_validation(there)
    assert not rows.divided_patients(found)
    for before, after in zip(there, found, strict=True):
        assert (before.split == "test") == (after.split == "test")
    # A second time nothing is left to do.
    if any(row.split == "validation" for row in found):
        assert splits.assign_validation(found) == found


def test_patients_eyes_and_sources_of_a_manifest(source):
    text = (
        "image_id,image,patient,eye,source,split\n"
        "a,a.jpg,7,Right,clinic,train\n"
        "b,b.PNG,,os,,test\n"
    )
    first, second = read_manifest(write(source, text), source)
    assert (first.patient, first.eye, first.source) == ("7", "OD", "clinic")
    assert (second.patient, second.eye, second.source) == ("", "OS", "")


@pytest.mark.parametrize("way", ["./a.jpg", "masks/../a.jpg", "link.jpg", "hard.jpg"])
def test_one_file_by_two_paths_is_a_problem(source, way):
    (source / "masks").mkdir()
    (source / "link.jpg").symlink_to(source / "a.jpg")
    (source / "hard.jpg").hardlink_to(source / "a.jpg")
    report = problems_of(source, f"image_id,image\na,a.jpg\nb,{way}\n")
    assert f"row 3: image {source / way} is also in row 2" in report


def test_a_patient_in_two_splits_is_a_problem(source):
    text = "image_id,image,patient,split\na,a.jpg,7,train\nb,b.PNG,7,test\n"
    report = problems_of(source, text)
    assert (
        "row 2: patient 7 has photographs in train (row 2) and test (row 3); put"
        in report
    )


def test_splits_for_testing_only_are_allowed(source):
    text = "image_id,image,split\na,a.jpg,test\nb,b.PNG,testing\n"
    found = read_manifest(write(source, text), source)
    assert [row.split for row in found] == ["test", "test"]
