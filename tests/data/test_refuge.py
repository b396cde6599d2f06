import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import zipfile

import numpy as np
import openpyxl
import pytest
import refuge_trees
import tensorflow_datasets as tfds
from photograph_files import png_bytes
from PIL import Image
from refuge_trees import ARRANGEMENTS, eyes

from mtl_jax.data import building, geometry, refuge
from mtl_jax.data.refuge import files, official, survey
from mtl_jax.data.refuge.layout import sort_files
from mtl_jax.data.schema import SPLITS
from mtl_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]

TEST_TABLE = "REFUGE-Test-GT/Glaucoma_label_and_Fovea_location.xlsx"
VALIDATION_TABLE = "REFUGE-Validation400-GT/Fovea_locations.xlsx"
VALIDATION_MASKS = "REFUGE-Validation400-GT/Disc_Cup_Masks"

# Small trees always lack most of the 1200 photographs.
build_small = functools.partial(refuge.build, image_size=32, allow_missing=True)


def records(version_dir):
    builder = tfds.builder_from_directory(version_dir)
    return {
        record["image_id"].decode(): {**record, "split": split}
        for split in builder.info.splits
        for record in builder.as_data_source(split)
    }


def assert_same(first, second):
    assert list(first) == list(second)
    for stem, record in first.items():
        assert set(record) == set(second[stem])
        for key, value in record.items():
            np.testing.assert_array_equal(second[stem][key], value, err_msg=key)


def everything_below(directory):
    return sorted(path.relative_to(directory) for path in directory.rglob("*"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The official tree and its data set."""
    source = refuge_trees.write(
        refuge_trees.official(), tmp_path_factory.mktemp("source")
    )
    return source, build_small(tmp_path_factory.mktemp("data"), source)


@pytest.fixture(scope="module")
def full_archives(tmp_path_factory):
    """The six archives with all photographs."""
    tree = refuge_trees.archived(refuge_trees.full_official())
    return refuge_trees.write(tree, tmp_path_factory.mktemp("full"))


@pytest.fixture
def in_threads(monkeypatch):
    """Starting processes takes longer than these tiny images."""
    monkeypatch.setattr(building, "PROCESSES_FROM", 10**6)


def test_records_are_what_the_files_say(small):
    found = records(small[1])
    assert set(found) == set(eyes())
    for stem, eye in eyes().items():
        record = found[stem]
        assert record["split"] == eye.split
        assert record["file_name"].decode() == f"{stem}.jpg"
        camera = "Zeiss Visucam 500" if eye.split == "train" else "Canon CR-2"
        assert record["camera"].decode() == camera
        assert record["glaucoma"] == eye.glaucoma
        assert record["has_label"].all()
        assert record["image"].shape == (32, 32, 3)
        assert tuple(record["native_size"]) == eye.size
        disc, cup = (eye.mask < 255).astype(np.uint8), (eye.mask == 0).astype(np.uint8)
        np.testing.assert_array_equal(record["native_disc_mask"][..., 0], disc)
        np.testing.assert_array_equal(record["native_cup_mask"][..., 0], cup)
        np.testing.assert_array_equal(
            record["disc_mask"][..., 0], geometry.resize_mask(disc, (32, 32))
        )
        np.testing.assert_array_equal(record["native_fovea_xy"], eye.fovea_xy)
        back = geometry.rescale_xy(record["fovea_xy"], (32, 32), eye.size)
        np.testing.assert_allclose(back, eye.fovea_xy, atol=1e-3)


def test_another_shape_is_another_data_set(small, tmp_path, in_threads):
    version_dir = refuge.build(
        tmp_path, small[0], image_size=32, shape="fov", allow_missing=True
    )
    assert version_dir.parent.name == "32px-fov"
    found = records(version_dir)
    for stem, stretched in records(small[1]).items():
        height, width = (int(side) for side in stretched["native_size"])
        assert stretched["frame"].tolist() == [0, 0, width, height]
        left, top, *sides = found[stem]["frame"].tolist()
        assert sides[0] == sides[1] <= max(height, width)
        back = geometry.rescale_xy(found[stem]["fovea_xy"], (32, 32), sides)
        wanted = stretched["native_fovea_xy"]
        np.testing.assert_allclose(back + (left, top), wanted, atol=1e-3)


@pytest.mark.parametrize("arrangement", list(ARRANGEMENTS))
def test_every_arrangement_gives_the_same_records(small, tmp_path, arrangement, capfd):
    source = refuge_trees.write(ARRANGEMENTS[arrangement](), tmp_path / "source")
    version_dir = build_small(tmp_path / "data", source)
    assert_same(records(small[1]), records(version_dir))
    out, err = capfd.readouterr()
    assert "train              5         2       5       5\n" in out
    assert "validation         3         1       3       3\n" in out
    assert "has 11 problems" in err
    assert ("3 photographs that only REFUGE2 has" in out) == ("REFUGE2" in arrangement)


def test_processes_build_the_same_as_threads(small, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "PROCESSES_FROM", 4)
    source = refuge_trees.write(refuge_trees.archived(), tmp_path / "source")
    assert_same(records(small[1]), records(build_small(tmp_path / "data", source)))


def test_full_official_set_builds_without_allow_missing(
    full_archives, tmp_path, capfd, in_threads
):
    version_dir = refuge.build(tmp_path, full_archives, image_size=32)
    assert version_dir == tmp_path / "refuge" / "32px" / "3.0.0"
    out, err = capfd.readouterr()
    for split in SPLITS:
        assert f"{split:12}     400        40     400     400\n" in out
    assert "problem" not in err
    splits = tfds.builder_from_directory(version_dir).info.splits
    assert {n: s.num_examples for n, s in splits.items()} == dict.fromkeys(SPLITS, 400)
    # Nothing was missing, so nothing is different if it may be.
    again = refuge.build(tmp_path, full_archives, image_size=32, allow_missing=True)
    assert again == version_dir


def test_damage_that_only_shows_when_building_stops_it(
    full_archives, tmp_path, in_threads
):
    whole = refuge_trees.eyes()["V0001"].jpeg
    source = tmp_path / "source"
    source.mkdir()
    for archive in full_archives.iterdir():
        (source / archive.name).symlink_to(archive)
    for name, damaged in (("Training400", "g0007"), ("Test400", "T0400")):
        archive = source / f"REFUGE-{name}.zip"
        with zipfile.ZipFile(archive) as old:
            tree = {p: old.read(p) for p in old.namelist() if not p.endswith("/")}
        archive.unlink()
        cut = {p: whole[:-500] for p in tree if damaged in p}
        archive.write_bytes(refuge_trees.zip_bytes({**tree, **cut}))
    with pytest.raises(UserError) as caught:
        refuge.build(tmp_path / "data", source, image_size=32)
    assert "has 2 problems" in str(caught.value)
    for stem in ("g0007", "T0400"):
        assert f"{stem}.jpg is truncated" in str(caught.value)
    assert not [p for p in everything_below(tmp_path / "data") if p.suffix]


def test_another_size_is_another_config(small, tmp_path):
    first = build_small(tmp_path, small[0])
    second = refuge.build(tmp_path, small[0], image_size=48, allow_missing=True)
    assert [first.parent.name, second.parent.name] == ["32px", "48px"]
    assert records(second)["g0001"]["image"].shape == (48, 48, 3)


def test_second_build_reads_nothing(small, monkeypatch, capfd):
    source, version_dir = small
    before = {p: os.stat(version_dir / p).st_mtime_ns for p in os.listdir(version_dir)}

    def fail(*args):
        raise AssertionError("a finished data set must not be read again")

    monkeypatch.setattr(files.SourceFile, "read_bytes", fail)
    assert build_small(version_dir.parents[2], source) == version_dir
    out, err = capfd.readouterr()
    # What there is and what is missing is worth hearing again.
    assert "train              5         2       5       5" in out
    assert "train lacks 395 of 400 photographs" in err
    assert before == {p: os.stat(version_dir / p).st_mtime_ns for p in before}


def test_other_contents_are_refused(tmp_path):
    source = refuge_trees.write(refuge_trees.official(), tmp_path / "source")
    version_dir = build_small(tmp_path / "data", source)
    (source / "notes.txt").write_text("stray files do not count")
    assert build_small(tmp_path / "data", source) == version_dir
    (source / "Test400/T0003.jpg").unlink()
    with pytest.raises(UserError, match="built from other files.*delete this folder"):
        build_small(tmp_path / "data", source)


def test_incomplete_data_set_needs_the_flag_again(small):
    source, version_dir = small
    with pytest.raises(UserError, match="(?s)with --allow_missing.*lacks 395 of 400"):
        refuge.build(version_dir.parents[2], source, image_size=32)


def test_gutted_data_set_is_recognised(small, tmp_path):
    version_dir = build_small(tmp_path, small[0])
    (version_dir / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="not a complete data set"):
        build_small(tmp_path, small[0])


KILLED_BUILD = """
import os, signal, sys
from mtl_jax.data.refuge import builder
whole = builder.examine
def stop(case, image_size, shape):
    if case.stem == "T0002":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(case, image_size, shape)
builder.examine = stop
builder.build(sys.argv[1], sys.argv[2], image_size=32, allow_missing=True)
"""


def test_killed_build_is_done_again(small, tmp_path):
    command = [sys.executable, "-c", KILLED_BUILD, str(tmp_path), str(small[0])]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert finished.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "refuge" / "32px").iterdir()
    assert left.name.startswith("incomplete.")
    version_dir = build_small(tmp_path, small[0])
    assert list(version_dir.parent.iterdir()) == [version_dir]
    assert_same(records(small[1]), records(version_dir))


def changed_table(split, **changes):
    """A table in which what it says of some eyes is changed."""
    members = [eye for eye in eyes().values() if eye.split == split]
    return refuge_trees.spreadsheet(
        split,
        [dataclasses.replace(eye, **changes.get(eye.stem, {})) for eye in members],
    )


def changed_json(**changes):
    entries = json.loads(refuge_trees.repack("a", "b", "png")["val/index.json"])
    for entry in entries.values():
        entry.update(changes.get(entry["ImgName"][:5], {}))
    return json.dumps(entries).encode()


def image_of(shape, kind, value=200, mode=None):
    array = np.full(shape, value, np.uint8)
    if mode is None:
        return refuge_trees.encode(array, kind)
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def damaged_book():
    return refuge_trees.official()[VALIDATION_TABLE][:1000]


def renamed_head(**heads):
    book = openpyxl.load_workbook(io.BytesIO(refuge_trees.official()[VALIDATION_TABLE]))
    for cell, head in heads.items():
        book.active[cell] = head
    return refuge_trees.book_bytes(book)


V1_PHOTO, V1_MASK = "REFUGE-Validation400/V0001.jpg", f"{VALIDATION_MASKS}/V0001.bmp"
LEFT_OUT = None
# What is changed (None: taken away), what is said of it, and which labels of which
# photograph are there in the end, in the order glaucoma, disc, cup, fovea.
TROUBLES = {
    "photograph truncated": (
        {V1_PHOTO: eyes()["V0001"].jpeg[:-500]},
        r"REFUGE-Validation400/V0001\.jpg is truncated",
        {"V0001": LEFT_OUT},
    ),
    "photograph empty": ({V1_PHOTO: b""}, r"V0001\.jpg is not an", {"V0001": LEFT_OUT}),
    "photograph that claims 16 bits": (
        {V1_PHOTO: png_bytes(np.full((61, 59, 3), 200, ">u2"), 16)},
        r"V0001\.jpg claims 16 bits per channel",
        {"V0001": LEFT_OUT},
    ),
    "photograph missing": (
        {V1_PHOTO: None},
        r"validation lacks 398 of 400 photographs \(V0001\.jpg, V0004\.jpg,",
        {"V0001": LEFT_OUT},
    ),
    "mask missing": (
        {V1_MASK: None},
        r"validation lacks 398 of 400 masks \(V0001\.bmp, V0004\.bmp,.*GT\.zip has one",
        {"V0001": "1001"},
    ),
    "mask truncated": (
        {V1_MASK: refuge_trees.encode(eyes()["V0001"].mask, "BMP")[:-900]},
        r"V0001\.bmp is truncated",
        {"V0001": "1001"},
    ),
    "mask of another size": (
        {V1_MASK: image_of((30, 30), "BMP")},
        r"V0001\.bmp has 30 x 30 pixels, its photograph 59 x 61; the official",
        {"V0001": "1001"},
    ),
    "mask with other values": (
        {V1_MASK: image_of((61, 59), "BMP", 2)},
        r"V0001\.bmp has 100 % of its pixels inside the .* 128 rim",
        {"V0001": "1001"},
    ),
    "mask the other way round": (
        {V1_MASK: refuge_trees.encode(255 - eyes()["V0001"].mask, "BMP")},
        r"V0001\.bmp has (9\d|100) % of its pixels inside the optic disc; the official",
        {"V0001": "1001"},
    ),
    "mask without a disc": (
        {V1_MASK: image_of((61, 59), "BMP", 255)},
        r"V0001\.bmp has 0 % of its pixels inside",
        {"V0001": "1001"},
    ),
    "fovea at (0, 0)": (
        {VALIDATION_TABLE: changed_table("validation", V0001={"fovea_xy": (0, 0)})},
        r"Fovea_locations\.xlsx row 2 has the fovea of V0001 at \(0, 0\).*official",
        {"V0001": "1110"},
    ),
    "fovea outside": (
        {TEST_TABLE: changed_table("test", T0002={"fovea_xy": (900.5, 4)})},
        r"fovea \(900\.5, 4\) lies outside Test400/T0002\.jpg, which has 61 x 59",
        {"T0002": "1110"},
    ),
    "fovea no number": (
        {VALIDATION_TABLE: changed_table("validation", V0002={"fovea_xy": ("?", 1)})},
        r"xlsx row 3 has '\?' for foveax",
        {"V0002": "1110"},
    ),
    "fovea by half": (
        {VALIDATION_TABLE: changed_table("validation", V0002={"fovea_xy": (9, None)})},
        r"xlsx row 3 has one of foveax and foveay without the other",
        {"V0002": "1110"},
    ),
    "foveas contradict each other": (
        {"val/index.json": changed_json(V0003={"Fovea_X": 3.25})},
        r"row 4 has the fovea of V0003 at .*index\.json entry 2 at \(3\.25, ",
        {"V0003": "1110"},
    ),
    "photograph resized": (
        {"val/index.json": changed_json(V0003={"Size_X": 1634, "Size_Y": 1634})},
        r"V0003\.jpg has 59 x 61 pixels, but the table .* says 1634 x 1634",
        {"V0003": "1110"},
    ),
    "labels contradict each other": (
        {TEST_TABLE: changed_table("test", T0001={"glaucoma": 0})},
        r"T0001 has glaucoma according to .*/G/T0001\.bmp, but is healthy according to "
        r".*Fovea_location\.xlsx row 2; the official",
        {"T0001": "0111"},
    ),
    "label in the wrong folder": (
        {
            "Training400/Glaucoma/g0002.jpg": None,
            "Training400/Non-Glaucoma/g0002.jpg": eyes()["g0002"].jpeg,
        },
        r"g0002 has glaucoma according to its name, but .*Non-Glaucoma/g0002\.jpg",
        {"g0002": "0111"},
    ),
    "label out of range": (
        {TEST_TABLE: changed_table("test", T0002={"glaucoma": 2})},
        r"row 3 gives T0002 the label 2; the official set has 1 for glaucoma and 0",
        {"T0002": "1111"},
    ),
    "labels missing": (
        {VALIDATION_TABLE: renamed_head(C1="Diagnosis")},
        r"validation lacks 400 of 400 glaucoma labels \(V0001\.jpg, .*and 397 more\)",
        {"V0001": "0111", "V0002": "0111", "V0003": "0111"},
    ),
    "table without a column of labels": (
        {VALIDATION_TABLE: renamed_head(C1="Diagnosis")},
        r"Fovea_locations\.xlsx has no column Glaucoma Label.*; the official Fovea",
        {"V0001": "0111", "V0002": "0111", "V0003": "0111"},
    ),
    "table without columns of foveas": (
        {VALIDATION_TABLE: renamed_head(D1="X", E1="Y")},
        r"Fovea_locations\.xlsx has no columns Fovea_X and Fovea_Y; the official",
        {"V0001": "1110", "V0002": "1110", "V0003": "1110"},
    ),
    "table without a column of names": (
        {VALIDATION_TABLE: renamed_head(B1="Image")},
        r"Fovea_locations\.xlsx has no column ImgName; the official .* has the columns "
        r"ID, ImgName, Glaucoma Label, Fovea_X, Fovea_Y\.",
        {"V0001": "0110", "V0002": "0110", "V0003": "0110"},
    ),
    "table with other names": (
        {VALIDATION_TABLE: renamed_head(B2="eye1", B3="eye2", B4="eye3")},
        r"xlsx has no photograph of REFUGE in its column ImgName; the official",
        {"V0001": "0110", "V0002": "0110", "V0003": "0110"},
    ),
    "table damaged": (
        {VALIDATION_TABLE: damaged_book()},
        r"Fovea_locations\.xlsx is a damaged table",
        {"V0001": "0110", "V0002": "0110", "V0003": "0110"},
    ),
    "JSON damaged": ({"val/index.json": b"{"}, r"index\.json is a damaged table", {}),
    "photographs differ": (
        {"copy/V0001.jpg": eyes()["V0002"].jpeg},
        r"V0001\.jpg and copy/V0001\.jpg differ; the official set has one",
        {"V0001": LEFT_OUT},
    ),
    "masks differ": (
        {
            "copy/gts/V0001.png": refuge_trees.encode(
                np.roll(eyes()["V0001"].mask, 5), "PNG"
            )
        },
        r"V0001\.bmp and copy/gts/V0001\.png differ",
        {"V0001": "1001"},
    ),
    "archive truncated": (
        {"more.zip": refuge_trees.archived()["REFUGE-Test400.zip"][:900]},
        r"more\.zip is a truncated or damaged archive",
        {},
    ),
}


@pytest.mark.parametrize("trouble", list(TROUBLES))
def test_what_is_missing_or_contradictory_is_said(small, tmp_path, trouble, capfd):
    changes, pattern, left = TROUBLES[trouble]
    tree = {**refuge_trees.official(), **changes}
    tree = {path: contents for path, contents in tree.items() if contents is not None}
    source = refuge_trees.write(tree, tmp_path / "source")
    with pytest.raises(UserError) as caught:
        refuge.build(tmp_path / "data", source, image_size=32)
    assert_said(pattern, str(caught.value))
    assert not (tmp_path / "data").exists()
    found = records(build_small(tmp_path / "data", source))
    assert_said(pattern, capfd.readouterr().err)
    for stem, expected in records(small[1]).items():
        labels = left.get(stem, "1111")
        if labels is LEFT_OUT:
            assert stem not in found
            continue
        has_label = "".join(str(int(has)) for has in found[stem]["has_label"])
        assert has_label == labels
        if labels == "1111":
            assert_same({stem: expected}, {stem: found[stem]})


def test_other_values_of_masks_count_as_the_nearest_with_a_warning(
    small, tmp_path, capfd
):
    mask, other = (eyes()[stem].mask.copy() for stem in ("V0001", "V0002"))
    mask[0, :3] = (192, 250, 254)
    rim, cup = np.argwhere(other == 128)[0], np.argwhere(other == 0)[0]
    other[tuple(rim)], other[tuple(cup)] = 100, 63
    tree = {
        **refuge_trees.official(),
        V1_MASK: refuge_trees.encode(mask, "BMP"),
        V1_MASK.replace("V0001", "V0002"): refuge_trees.encode(other, "BMP"),
    }
    source = refuge_trees.write(tree, tmp_path / "source")
    # It is said of a data set that is there already as well.
    for _ in range(2):
        found = records(build_small(tmp_path / "data", source))
        assert_same(records(small[1]), found)
        assert_said(
            r"warning: 5 pixels of masks have other values .* nearest \("
            r"(3 in .*V0001\.bmp, )?2 in .*V0002\.bmp(, 3 in .*V0001\.bmp)?\)",
            capfd.readouterr().err,
        )


def assert_said(pattern, text):
    lines = [line for line in text.splitlines() if re.search(pattern, line)]
    assert len(lines) == 1, text


def test_wrong_number_of_glaucoma_is_said(full_archives, tmp_path):
    tree = refuge_trees.full_official()
    members = [
        dataclasses.replace(eyes()["V0001"], stem=f"V{i:04d}", glaucoma=int(i > 40))
        for i in range(1, 401)
    ]
    tree = {VALIDATION_TABLE: refuge_trees.spreadsheet("validation", members)}
    for archive in full_archives.iterdir():
        if "Validation400-GT" not in archive.name:
            tree[archive.name] = archive.read_bytes()
    listing = files.list_files(refuge_trees.write(tree, tmp_path))
    there = survey.survey(sort_files(listing.files))
    assert there.problems == [
        "validation lacks 400 of 400 masks (V0001.bmp, V0002.bmp, V0003.bmp and 397 "
        "more); the official REFUGE-Validation400-GT.zip has one for each photograph.",
        "validation has 360 photographs labelled glaucoma; the official set has 40.",
    ]


def test_many_problems_are_cut(small, tmp_path):
    tree = refuge_trees.official()
    members = [
        dataclasses.replace(eyes()["V0001"], stem=f"V{i:04d}", fovea_xy=(0, 0))
        for i in range(1, 401)
    ]
    tree[VALIDATION_TABLE] = refuge_trees.spreadsheet("validation", members)
    source = refuge_trees.write(tree, tmp_path / "source")
    with pytest.raises(UserError) as caught:
        refuge.build(tmp_path / "data", source, image_size=32)
    lines = str(caught.value).splitlines()
    assert len(lines) < 60
    assert "has 410 problems" in lines[0]
    assert "and 360 more" in lines[-2]
    assert "--allow_missing" in lines[-1]


@pytest.mark.parametrize(
    "name", ["../../V0001.jpg", "/tmp/V0001.jpg", "C:\\x\\V0001.jpg", "a/../V0001.jpg"]
)
def test_members_that_lead_out_are_neither_written_nor_read(tmp_path, name, capfd):
    tree = refuge_trees.archived()
    photographs = {
        path: data
        for path, data in refuge_trees.official().items()
        if path.startswith("REFUGE-Validation400/") and "V0001" not in path
    }
    buffer = io.BytesIO(refuge_trees.zip_bytes(photographs))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, eyes()["V0001"].jpeg)
    tree["REFUGE-Validation400.zip"] = buffer.getvalue()
    source = refuge_trees.write(tree, tmp_path / "deep" / "source")
    before = everything_below(tmp_path)
    found = records(build_small(tmp_path / "deep" / "data", source))
    assert "V0001" not in found
    assert "V0002" in found
    assert "members whose names lead out of it" in capfd.readouterr().out
    after = [p for p in everything_below(tmp_path) if p.parts[:2] != ("deep", "data")]
    assert after == before


def test_windows_separators_are_folders(tmp_path, small):
    tree = {p: d for p, d in refuge_trees.official().items() if p.startswith("Train")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in tree.items():
            info = zipfile.ZipInfo("x")
            info.filename = path.replace("/", "\\")
            archive.writestr(info, data)
    rest = {p: d for p, d in refuge_trees.official().items() if p not in tree}
    rest["train.zip"] = buffer.getvalue()
    source = refuge_trees.write(rest, tmp_path / "source")
    assert_same(records(small[1]), records(build_small(tmp_path / "data", source)))


def test_what_was_converted_is_said_at_every_build(small, tmp_path, capfd):
    source = refuge_trees.write(refuge_trees.official(), tmp_path / "source")
    (source / V1_PHOTO).write_bytes(image_of((61, 59, 3), "JPEG", mode="CMYK"))
    for _ in range(2):
        build_small(tmp_path / "data", source)
        assert_said(
            "^note: 1 photograph in CMYK without a colour profile was converted",
            capfd.readouterr().err,
        )


def test_damaged_member_is_named(tmp_path, capfd):
    tree = refuge_trees.archived()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # Stored, not compressed.
        for stem in ("V0001", "V0002"):
            archive.writestr(f"{stem}.jpg", eyes()[stem].jpeg)
    archive = bytearray(buffer.getvalue())
    archive[700] ^= 255
    tree["REFUGE-Validation400.zip"] = bytes(archive)
    source = refuge_trees.write(tree, tmp_path / "source")
    found = records(build_small(tmp_path / "data", source))
    assert "V0001" not in found
    assert "V0002" in found
    assert_said(
        r"REFUGE-Validation400\.zip/V0001\.jpg cannot be read \(Bad CRC",
        capfd.readouterr().err,
    )


def test_encrypted_archive_and_other_archives_are_named(tmp_path):
    data = bytearray(refuge_trees.zip_bytes({"T0001.jpg": b"secret"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    tree = {
        "encrypted.zip": bytes(data),
        "nested.zip": refuge_trees.zip_bytes({"inner.zip": b"", "masks.rar": b""}),
        "Test400.rar": b"Rar!",
    }
    listing = files.list_files(refuge_trees.write(tree, tmp_path))
    assert listing.files == []
    assert listing.problems == [
        "encrypted.zip is encrypted (T0001.jpg); unpack it with its password."
    ]
    notes = " ".join(sorted(listing.notes))
    assert "Test400.rar is not read" in notes
    assert "nested.zip holds archives" in notes
    assert "inner.zip, masks.rar" in notes


def test_links_are_followed_once(tmp_path, small):
    source = tmp_path / "source"
    source.mkdir()
    for folder in small[0].iterdir():
        (source / folder.name).symlink_to(folder)
    (source / "again").symlink_to(source)
    (source / "T0009.jpg").symlink_to(tmp_path / "nowhere")
    names = [file.name for file in files.list_files(source).files]
    assert names == [file.name for file in files.list_files(small[0]).files]


@pytest.mark.parametrize(
    "tree", [{}, {"Test400.rar": b""}, {"cat.jpg": b"", "x.zip": None}]
)
def test_nothing_found_is_one_sentence(tmp_path, tree):
    tree = {p: refuge_trees.zip_bytes({}) if d is None else d for p, d in tree.items()}
    source = tmp_path / "source"
    source.mkdir()
    refuge_trees.write(tree, source)
    with pytest.raises(UserError, match="holds nothing of REFUGE.*T0001.jpg") as caught:
        build_small(tmp_path / "data", source)
    assert ("unpack it" in str(caught.value)) == ("Test400.rar" in tree)
    assert not (tmp_path / "data").exists()


def test_photographs_are_needed(tmp_path):
    tree = {p: d for p, d in refuge_trees.official().items() if ".jpg" not in p}
    source = refuge_trees.write(tree, tmp_path / "source")
    with pytest.raises(UserError, match="test lacks 400 of 400 photographs"):
        build_small(tmp_path / "data", source)


def test_split_without_a_readable_photograph(tmp_path):
    tree = {
        path: b"no image" if path.startswith("Test400") else data
        for path, data in refuge_trees.official().items()
    }
    source = refuge_trees.write(tree, tmp_path / "source")
    said = "(?s)No photograph of the test split can be read.*T0001.jpg is not an image"
    with pytest.raises(UserError, match=said):
        build_small(tmp_path / "data", source)
    assert not [p for p in everything_below(tmp_path / "data") if p.suffix]


def test_misplaced_photographs_come_to_their_split(small, tmp_path, capfd):
    tree = refuge_trees.renamed(
        lambda path: path.replace("Test400/", "REFUGE-Validation400/")
    )
    source = refuge_trees.write(tree, tmp_path / "source")
    assert_same(records(small[1]), records(build_small(tmp_path / "data", source)))
    assert "3 files lie in a folder of another split" in capfd.readouterr().out


@pytest.mark.parametrize("folder", ["Glaucoma/REFUGE", "normal", "n"])
def test_folders_above_the_splits_are_no_labels(small, tmp_path, folder):
    tree = refuge_trees.renamed(lambda path: f"{folder}/{path}")
    source = refuge_trees.write(tree, tmp_path / "source")
    assert_same(records(small[1]), records(build_small(tmp_path / "data", source)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"image_size": 100}, "multiple of 16"), ({"source": "nowhere"}, "not a direct")],
)
def test_unsuitable_arguments(small, tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        refuge.build(tmp_path, **{"source": small[0], **options})


@pytest.mark.parametrize(
    ("name", "stem", "split"),
    [
        ("g0001.jpg", "g0001", "train"),
        ("N0360.JPG", "n0360", "train"),
        ("v0400", "V0400", "validation"),
        (" T0001.bmp ", "T0001", "test"),
        ("g0041.jpg", "g0041", None),
        ("V0401.jpg", "V0401", None),
        ("T0000.jpg", "T0000", None),
        ("T001.jpg", None, None),
        ("xT0001.jpg", None, None),
        ("T0001_mask.png", None, None),
    ],
)
def test_official_names(name, stem, split):
    assert official.stem_of(name) == stem
    if stem is not None:
        assert official.split_of(stem) == split


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("Test400/T0001.jpg", "photographs"),
        ("REFUGE-Test-GT.zip/T0001.png", "masks"),
        ("TestGT/T0001.bmp", "masks"),
        ("test/GTs/T0001.png", "masks"),
        ("Annotations/Images/T0001.png", "photographs"),
        ("REFUGE segmentation/Test400/T0001.jpg", "photographs"),
        ("REFUGE segmentation/Test400/T0001.bmp", "masks"),
        ("T0001.png", "photographs"),
        ("images_and_masks/T0001.jpg", "photographs"),
        ("images_and_masks/T0001.bmp", "masks"),
        ("masks/Disc_Cup_Fovea_Illustration/T0001.jpg", None),
        ("Refuge2-Test/T0001.jpg", "refuge2"),
        ("Refuge2-Test/T0001.bmp", None),
        ("REFUGE2/Train/REFUGE1-test/T0001.jpg", "photographs"),
        ("REFUGE2-Training/REFUGE1-Test-400/T0001.jpg", "photographs"),
        ("index.json", "tables"),
        ("Fovea.XLSX", "tables"),
        ("labels.csv", None),
    ],
)
def test_kind_of_a_file(path, kind):
    file = files.SourceFile(tuple(path.split("/")), path, None, (0, 0))
    layout = sort_files([file])
    filled = {
        n for n in ("photographs", "masks", "tables", "refuge2") if getattr(layout, n)
    }
    assert filled == ({kind} if kind else set())


FULL_DISK = """
import resource, signal, sys
from mtl_jax.data import refuge
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
refuge.build(sys.argv[1], sys.argv[2], image_size=32, allow_missing=True)
"""


def test_full_disk_is_said(small, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(small[0])]
    finished = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert re.search(
        r"UserError: .*32px cannot be written \(File too large\); make room",
        finished.stderr,
    )
    assert list((tmp_path / "refuge" / "32px").iterdir()) == []


def test_script(tmp_path):
    source = refuge_trees.write(refuge_trees.archived(), tmp_path / "source")
    # Such as old archives leave: a name that is not text, and is to be said.
    odd = os.path.join(os.fsencode(source), b"Validation\xff")
    os.makedirs(odd)
    pathlib.Path(os.fsdecode(odd), "T0001.jpg").write_bytes(eyes()["T0001"].jpeg)
    command = [
        *(sys.executable, "-m", "scripts.prepare_data", "--dataset=refuge"),
        *(f"--source={source}", f"--data_dir={tmp_path / 'data'}", "--image_size=32"),
        "--allow_missing",
    ]
    built = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert built.returncode == 0, built.stderr
    assert "Validation\\udcff/T0001.jpg" in built.stdout
    assert "train on it with" in built.stdout
    assert "--config.data.dataset=refuge/32px" in built.stdout
    assert "train lacks 395 of 400 photographs" in built.stderr
