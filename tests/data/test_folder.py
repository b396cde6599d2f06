import collections
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from photograph_files import cmyk_profile, deep, png_bytes, write_dicom, write_heic
from PIL import Image

from mtl_jax import annotations
from mtl_jax.data import building, folder, geometry, pipeline
from mtl_jax.data.folder import builder, manifest
from mtl_jax.data.folder.rows import SPLITS
from mtl_jax.errors import UserError
from mtl_jax.reporting import terminal

ROOT = pathlib.Path(__file__).parents[2]
REAL_FUNDUS = ROOT.parent / "shared" / "real_fundus"

LINES = [
    "image_id,image,disc_mask,cup_mask,mask,fovea_x,fovea_y,glaucoma,split",
    "full,full.png,disc.png,cup.png,,70.2567891234,41.5,1,train",
    "combined,combined.png,,,both.png,,,0,train",
    "disc_only,disc_only.png,disc.png,,,,,,train",
    "fovea_only,fovea_only.png,,,,0,-0.5,,test",
    "bare,bare.png,,,,,,no,test",
]


def write_source(source):
    """Five photographs of 120 x 80 pixels, annotated in part."""
    rng = np.random.default_rng(0)
    disc = np.zeros((80, 120), np.uint8)
    disc[20:50, 30:70] = 255
    cup = np.zeros_like(disc)
    cup[30:40, 40:60] = 255
    source.mkdir()
    for name, mask in (
        ("disc.png", disc),
        ("cup.png", cup),
        ("both.png", np.where(cup > 0, 0, np.where(disc > 0, 128, 255))),
    ):
        Image.fromarray(mask.astype(np.uint8)).save(source / name)
    for line in LINES[1:]:
        picture = rng.integers(0, 255, (80, 120, 3), dtype=np.uint8)
        Image.fromarray(picture).save(source / line.split(",")[1])
    (source / "manifest.csv").write_text("\n".join(LINES))


@pytest.fixture
def source(tmp_path):
    write_source(tmp_path / "my photos (v2)")
    return tmp_path / "my photos (v2)"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "five"
    write_source(source)
    return source, folder.build(
        tmp_path_factory.mktemp("data"), source, image_size=64, name="five"
    )


def records(version_dir, split):
    data = tfds.builder_from_directory(version_dir).as_data_source(split)
    return {record["image_id"].decode(): record for record in data}


def files_under(directory):
    return {
        path.relative_to(directory).as_posix(): path.stat().st_mtime_ns
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_splits_are_those_of_the_manifest(built):
    _, version_dir = built
    train = records(version_dir, "train")
    assert set(train) == {"full", "combined", "disc_only"}
    assert train["full"]["file_name"] == b"full.png"
    assert set(records(version_dir, "test")) == {"fovea_only", "bare"}
    assert set(tfds.builder_from_directory(version_dir).info.splits) == {
        "train",
        "test",
    }


def test_partial_labels_survive(built):
    _, version_dir = built
    found = {**records(version_dir, "train"), **records(version_dir, "test")}
    has_label = {name: record["has_label"].tolist() for name, record in found.items()}
    assert annotations.LABELS == ("glaucoma", "disc", "cup", "fovea")
    assert has_label == {
        "full": [True, True, True, True],
        "combined": [True, True, True, False],
        "disc_only": [False, True, False, False],
        "fovea_only": [False, False, False, True],
        "bare": [True, False, False, False],
    }
    assert [found[name]["glaucoma"] for name in ("full", "combined", "bare")] == [
        1,
        0,
        0,
    ]


def test_images_and_masks_survive(built):
    source, version_dir = built
    train = records(version_dir, "train")
    record = train["full"]
    picture = np.asarray(Image.open(source / "full.png"))
    # Without a ground, as noise is, it is padded to a square.
    padded = np.pad(picture, ((20, 20), (0, 0), (0, 0)))
    expected = geometry.resize_photograph(padded, (64, 64))
    assert (record["image"] == expected).all()
    assert record["frame"].tolist() == [0, -20, 120, 120]
    assert record["native_size"].tolist() == [80, 120]
    for name in ("disc", "cup"):
        native = np.asarray(Image.open(source / f"{name}.png")) // 255
        for annotated in (record, train["combined"]):
            assert (annotated[f"native_{name}_mask"][..., 0] == native).all()
            assert (
                annotated[f"{name}_mask"][..., 0]
                == geometry.resize_mask(np.pad(native, ((20, 20), (0, 0))), (64, 64))
            ).all()
    assert train["disc_only"]["native_cup_mask"].shape == (80, 120, 1)
    assert not train["disc_only"]["native_cup_mask"].any()


@pytest.mark.parametrize(
    ("split", "name", "xy"),
    [("train", "full", (70.2567891234, 41.5)), ("test", "fovea_only", (0, -0.5))],
)
def test_fovea_comes_back_exactly_and_at_model_size_nearly(built, split, name, xy):
    record = records(built[1], split)[name]
    np.testing.assert_array_equal(record["native_fovea_xy"], xy)
    assert record["fovea_xy"].dtype == np.float32
    back = geometry.rescale_xy(record["fovea_xy"], (64, 64), (120, 120)) - (0, 20)
    np.testing.assert_allclose(back, xy, atol=1e-3)


def test_name_size_and_litter(tmp_path, source):
    version_dir = folder.build(tmp_path / "data", source, image_size=32)
    relative = version_dir.relative_to(tmp_path / "data").as_posix()
    assert relative == "fundus_folder/my_photos__v2_-32px/3.0.0"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fundus_folder"]
    assert list(version_dir.parent.iterdir()) == [version_dir]


def test_nothing_but_progress_bars_is_printed(tmp_path, source, capfd):
    folder.build(tmp_path / "data", source, image_size=32)
    out, err = capfd.readouterr()
    assert out == ""
    for line in err.replace("\r", "\n").split("\n"):
        assert line == "" or line.startswith(("checking files", "building t"))


def test_second_build_touches_nothing(built, monkeypatch):
    source, version_dir = built
    before = files_under(version_dir)

    def fail(*args):
        raise AssertionError("a finished data set must not be checked again")

    monkeypatch.setattr(builder, "check", fail)
    again = folder.build(version_dir.parents[2], source, image_size=64, name="five")
    assert again == version_dir
    assert files_under(version_dir) == before


@pytest.mark.parametrize("changed", ["manifest.csv", "full.png", "disc.png"])
def test_other_contents_under_the_same_name_are_refused(tmp_path, source, changed):
    folder.build(tmp_path / "data", source, image_size=32)
    if changed == "manifest.csv":
        (source / changed).write_text("\n".join(LINES[:-1]))
    else:
        stat = (source / changed).stat()
        os.utime(source / changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    with pytest.raises(UserError, match="other contents.*another name or delete"):
        folder.build(tmp_path / "data", source, image_size=32)
    version_dir = folder.build(tmp_path / "data", source, image_size=32, name="b")
    assert version_dir.is_dir()


def test_problems_leave_nothing_behind(tmp_path, source):
    (source / "full.png").write_bytes((source / "full.png").read_bytes()[:900])
    (source / "bare.png").unlink()
    with pytest.raises(UserError) as caught:
        folder.build(tmp_path / "data", source, image_size=32)
    assert "row 2: " in str(caught.value)
    assert "full.png is truncated" in str(caught.value)
    assert "row 6: " in str(caught.value)
    assert "bare.png does not exist" in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_failed_build_leaves_nothing_behind(tmp_path, source, monkeypatch):
    def fail(row, image_size, shape):
        raise UserError(f"{row.image} vanished.")

    monkeypatch.setattr(builder, "record_of", fail)
    with pytest.raises(UserError, match=r"full\.png vanished"):
        folder.build(tmp_path / "data", source, image_size=32)
    assert files_under(tmp_path / "data") == {}
    monkeypatch.undo()
    assert folder.build(tmp_path / "data", source, image_size=32).is_dir()


KILLED_BUILD = """
import os, signal, sys
from mtl_jax.data import folder
from mtl_jax.data.folder import builder
whole = builder.record_of
def stop(row, image_size, shape):
    if row.image_id == "bare":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(row, image_size, shape)
builder.record_of = stop
folder.build(sys.argv[1], sys.argv[2], image_size=32)
"""


def test_killed_build_is_done_again(tmp_path, source):
    data_dir = tmp_path / "data"
    command = [sys.executable, "-c", KILLED_BUILD, str(data_dir), str(source)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert finished.returncode == -signal.SIGKILL
    (left,) = (data_dir / "fundus_folder" / "my_photos__v2_-32px").iterdir()
    assert left.name.startswith("incomplete.")
    version_dir = folder.build(data_dir, source, image_size=32)
    assert list(version_dir.parent.iterdir()) == [version_dir]
    assert set(records(version_dir, "test")) == {"fovea_only", "bare"}


def test_gutted_data_set_is_recognised(tmp_path, source):
    version_dir = folder.build(tmp_path / "data", source, image_size=32)
    (version_dir / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="not a complete data set"):
        folder.build(tmp_path / "data", source, image_size=32)


def test_processes_build_the_same_as_threads(built, tmp_path, monkeypatch):
    source, version_dir = built
    monkeypatch.setattr(building, "PROCESSES_FROM", 3)
    other = folder.build(tmp_path, source, image_size=64, name="five")
    first, second = records(version_dir, "train"), records(other, "train")
    assert list(first) == list(second)
    for name in first:
        for key, value in first[name].items():
            np.testing.assert_array_equal(second[name][key], value)


@pytest.mark.parametrize("processes_from", [3, 100])
def test_what_was_converted_is_said_once(
    tmp_path, source, monkeypatch, capfd, processes_from
):
    """By workers too, and again by the second command, which converts nothing."""
    pixels = deep(16, shape=(80, 120, 3))
    for name, shown in (("full.png", pixels), ("bare.png", pixels[::-1])):
        (source / name).write_bytes(png_bytes(shown.astype(">u2"), 16))
    write_dicom(source / "disc_only.png", deep(12, shape=(80, 120, 3)), BitsStored=12)
    inks = Image.open(source / "combined.png").convert("CMYK")
    inks.save(source / "combined.png", "JPEG", icc_profile=cmyk_profile())
    write_heic(source / "fovea_only.png", pixels)
    monkeypatch.setattr(building, "PROCESSES_FROM", processes_from)
    for _ in range(2):
        folder.build(tmp_path / "data", source, image_size=32)
        notes = [x for x in capfd.readouterr().err.splitlines() if x.startswith("note")]
        assert notes == [
            "note: 1 photograph in CMYK was converted to RGB by the colour profile in "
            "the file.",
            "note: 1 photograph of 10 bits per channel was reduced to 8 bits.",
            "note: 1 photograph of 12 bits per channel was reduced to 8 bits.",
            "note: 2 photographs of 16 bits per channel were reduced to 8 bits.",
        ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"image_size": 100}, "multiple of 16"),
        ({"image_size": 16}, "at least 32"),
        ({"manifest": "nowhere.csv"}, "does not exist"),
        ({"accept": ["large"]}, "the kinds are .*large_mask"),
    ],
)
def test_unsuitable_arguments(tmp_path, source, options, reason):
    with pytest.raises(UserError, match=reason):
        folder.build(tmp_path / "data", source, **options)


def test_wrong_places(tmp_path, source):
    with pytest.raises(UserError, match="is not a directory"):
        folder.build(tmp_path / "data", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be created"):
        folder.build(tmp_path / "file", source)


@pytest.mark.skipif(
    not REAL_FUNDUS.is_dir(), reason="no real photographs in ../shared/real_fundus"
)
def test_real_photographs(tmp_path):
    lines = (REAL_FUNDUS / "manifest.csv").read_text().splitlines()[:5]
    (tmp_path / "four.csv").write_text("\n".join(lines))
    version_dir = folder.build(
        tmp_path / "data", REAL_FUNDUS, manifest=tmp_path / "four.csv"
    )
    assert version_dir.parent.name == "real_fundus-256px"
    rows = manifest.read(tmp_path / "four.csv", REAL_FUNDUS).rows
    found = {
        name: record
        for split in SPLITS
        for name, record in records(version_dir, split).items()
    }
    assert set(found) == {row.image_id for row in rows}
    for record in found.values():
        assert record["image"].shape == (256, 256, 3)
        assert record["has_label"].tolist() == [False, True, False, False]
        native, small = record["native_disc_mask"], record["disc_mask"]
        assert set(np.unique(native)) == {0, 1}
        assert abs(native.mean() - small.mean()) < 0.01


def test_what_was_built_is_told_in_a_table(built):
    _, version_dir = built
    text = terminal.tally_text(pipeline.tally(version_dir))
    lines = [line.rsplit(maxsplit=2) for line in text.splitlines()]
    assert lines == [
        ["train", "test"],
        ["images", "3", "2"],
        ["glaucoma", "2", "1"],
        ["disc", "3", "0"],
        ["cup", "2", "0"],
        ["fovea", "1", "1"],
        ["with glaucoma", "1", "0"],
        ["pixels 120 x 80", "3", "2"],
        ["field of view 1.0", "3", "2"],
    ]


def test_many_values_share_a_row_of_the_table():
    sizes = collections.Counter({f"{n} x {n}": n for n in range(100, 110)})
    counts = {"labels": collections.Counter(images=sizes.total()), "pixels": sizes}
    lines = terminal.tally_text({"train": counts}).splitlines()
    assert len(lines) == 2 + 6 + 1
    assert lines[2].split() == ["pixels", "109", "x", "109", "109"]
    assert lines[-1].split() == [
        "4",
        "others",
        "of",
        "pixels",
        str(100 + 101 + 102 + 103),
    ]
