import csv
import importlib
import pathlib
import shutil
import sys

import full_disk
import numpy as np
import pytest
from photograph_files import deep, png_bytes, scaled, write_dicom
from PIL import Image

from mtl_jax import files, workdirs
from mtl_jax.data import geometry
from mtl_jax.data.synthetic import renderer
from mtl_jax.errors import UserError
from mtl_jax.evaluation import predict
from mtl_jax.inference.prediction import interpret
from mtl_jax.reporting import predictions

pytest_plugins = ("training_fixtures",)

COLUMNS = (
    "image,file,quality,glaucoma,probability,probability_fc,probability_vcdr,vcdr,fovea_x,"
    "fovea_y,probability_spread,vcdr_spread,fovea_spread,"
    "disc_height,cup_height,disc_area,cup_area,width,height,mask,overlay"
)
SIZES = {"odd": (37, 51), "wide": (90, 40), "square": (32, 32), "large": (600, 451)}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Drawn fundi, of several sizes and formats."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, (width, height) in SIZES.items():
        rng = np.random.default_rng(width)
        camera = renderer.TRAINING_CAMERA
        picture = renderer.render(rng, (height, width), camera, False).photograph
        extension = "jpg" if name == "large" else "png"
        Image.fromarray(picture).save(folder / f"{name}.{extension}")
    return folder


def copy_of(photographs, place):
    place.mkdir()
    for path in photographs.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def read_csv(output):
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def predicted(tiny_run, photographs, tmp_path_factory):
    output = tmp_path_factory.mktemp("predicted") / "deep" / "out"
    failures, notes, *_ = predictions.write(tiny_run.workdir, str(photographs), output)
    assert failures == []
    # So small a network finds foveas beside the disc.
    assert all("of doubtful quality" in note for note in notes)
    return output


@pytest.fixture(scope="module")
def expected(tiny_run, photographs):
    """What the network says of each photograph, by `interpret`."""
    network = workdirs.load(tiny_run.workdir)
    predictions = {}
    for path in photographs.iterdir():
        image = Image.open(path)
        small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        logits, _ = network({"image": np.stack([small] * network.batch_size)})
        predictions[path.stem] = interpret(
            {name: values[0] for name, values in logits.items()},
            network.classifier,
            geometry.whole((image.height, image.width)),
        )
    return predictions


def test_what_is_written(predicted):
    assert {path.name for path in predicted.glob("[!.]*")} == {
        "predictions.csv",
        "masks",
        "overlays",
        "summary.json",
    }
    for folder, ending in (("masks", "png"), ("overlays", "jpg")):
        names = {path.name for path in (predicted / folder).iterdir()}
        assert names == {f"{name}.{ending}" for name in SIZES}
    text = (predicted / "predictions.csv").read_text()
    assert text.splitlines()[0] == COLUMNS


def test_table_against_interpret(predicted, expected):
    rows = read_csv(predicted)
    assert set(rows) == set(SIZES)
    assert any(row["vcdr"] for row in rows.values())
    for name, row in rows.items():
        wanted = expected[name]
        for key in ("probability", "probability_fc", "probability_vcdr", "vcdr"):
            # Empty where there is no disc or no cup.
            actual = float(row[key]) if row[key] else None
            assert actual == pytest.approx(getattr(wanted, key), abs=1e-5)
        assert row["glaucoma"] == str(int(wanted.probability >= 0.5))
        assert (int(row["width"]), int(row["height"])) == SIZES[name]
        x, y = wanted.found["fovea"]
        assert float(row["fovea_x"]) == pytest.approx(x, abs=0.011)
        assert float(row["fovea_y"]) == pytest.approx(y, abs=0.011)
        assert -0.5 <= float(row["fovea_x"]) <= SIZES[name][0] - 0.5
        for part in ("disc", "cup"):
            mask = wanted.found[part]
            assert int(row[f"{part}_area"]) == mask.sum()
            assert int(row[f"{part}_height"]) == mask.sum(0).max()
        assert pathlib.Path(row["file"]).stem == name
        assert pathlib.Path(row["file"]).is_file()
        assert (predicted / row["mask"]).is_file()
        assert (predicted / row["overlay"]).is_file()


def test_masks_are_at_native_size_with_refuges_values(predicted, expected):
    seen = set()
    for name, size in SIZES.items():
        with Image.open(predicted / "masks" / f"{name}.png") as image:
            assert image.size == size
            assert image.mode == "L"
            grey = np.asarray(image)
        wanted = expected[name]
        disc, cup = (wanted.found[part] > 0 for part in ("disc", "cup"))
        assert ((grey == 0) == cup).all()
        assert ((grey <= 128) == (disc | cup)).all()
        seen |= set(np.unique(grey))
    assert seen <= {0, 128, 255}
    assert len(seen) > 1


def test_what_was_converted_is_said_once(tiny_run, photographs, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        photograph = np.array(Image.open(photographs / "odd.png"), np.uint16)
        values = 256 * photograph + rng.integers(256, size=photograph.shape)
        values = values.astype(np.uint16)
        (folder / f"{index}.png").write_bytes(png_bytes(values.astype(">u2"), 16))
        Image.fromarray(scaled(values, 16).astype(np.uint8)).save(
            folder / f"{index}.tif"
        )
    write_dicom(folder / "eye.dcm", deep(10), BitsStored=10)
    write_dicom(folder / "cut.dcm", deep(8).astype(np.uint8), Modality="OPT")
    Image.new("CMYK", (64, 48)).save(folder / "print.jpg")
    failures, conversions, *_ = predictions.write(
        tiny_run.workdir, str(folder), tmp_path / "out"
    )
    (failure,) = failures
    assert "cut.dcm is DICOM of the modality OPT" in failure
    assert conversions[:-1] == [
        "1 photograph in CMYK without a colour profile was converted to RGB by a plain "
        "formula, which may shift colours.",
        "1 photograph of 10 bits per channel was reduced to 8 bits.",
        "3 photographs of 16 bits per channel were reduced to 8 bits.",
    ]
    assert conversions[-1].endswith(" of doubtful quality, see the column quality.")
    rows = read_csv(tmp_path / "out")
    assert len(rows) == 8
    for index in range(3):
        first, second = rows[f"{index}"], rows[f"{index}_2"]
        assert first["quality"] == second["quality"]
        assert first["probability"] == second["probability"]


def test_nothing_is_said_of_what_is_not_a_fundus(tiny_run, photographs, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    picture = Image.open(photographs / "odd.png")
    picture.save(folder / "eye.png")
    Image.fromarray(np.asarray(picture)[..., ::-1].copy()).save(folder / "cat.png")
    Image.fromarray(np.asarray(picture) // 4).save(folder / "dark.png")
    output = tmp_path / "out"
    _, notes, *_ = predictions.write(tiny_run.workdir, str(folder), output)
    (note,) = notes
    assert note.endswith(" of doubtful quality, see the column quality.")
    rows = read_csv(output)
    cat = {key: value for key, value in rows["cat"].items() if value}
    assert set(cat) == {"image", "file", "quality", "width", "height", "overlay"}
    assert cat["quality"].startswith("not a fundus: ")
    assert "underexposed: its brightness is " in rows["dark"]["quality"]
    for name in ("eye", "dark"):
        assert "" not in {rows[name][key] for key in ("probability", "fovea_x", "mask")}
    assert "exposed" not in rows["eye"]["quality"]
    assert {path.name for path in (output / "masks").iterdir()} == {
        "eye.png",
        "dark.png",
    }
    assert len(list((output / "overlays").iterdir())) == 3
    # A submission has a line for every photograph.
    predictions.write(tiny_run.workdir, str(folder), tmp_path / "refuge", form="refuge")
    risks = (tmp_path / "refuge" / "classification_results.csv").read_text()
    assert len(risks.splitlines()) == 4


def test_broken_files_are_named_and_skipped(tiny_run, photographs, predicted, tmp_path):
    """More files than a batch, the broken ones in between."""
    folder = copy_of(photographs, tmp_path / "in")
    whole = (folder / "large.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "zero.png").touch()
    (folder / "notes.txt").write_text("not looked at")
    failures, *_ = predictions.write(tiny_run.workdir, str(folder), tmp_path / "out")
    assert len(failures) == 3
    for name, failure in zip(
        ("cut.jpg", "text.jpg", "zero.png"), failures, strict=True
    ):
        assert str(folder / name) in failure
        assert "\n" not in failure
    assert {p.name for p in (tmp_path / "out" / "masks").iterdir()} == {
        f"{name}.png" for name in SIZES
    }
    rows, before = read_csv(tmp_path / "out"), read_csv(predicted)
    assert set(rows) == set(before)
    for name, row in rows.items():
        for key in ("probability", "fovea_x", "fovea_y"):
            assert float(row[key]) == pytest.approx(float(before[name][key]), abs=0.011)


def test_nothing_is_left_where_nothing_could_be_read(tiny_run, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_text("x")
    (folder / "b.png").write_text("x")
    with pytest.raises(UserError, match=r"No photograph could be read \(2 of 2 were"):
        predictions.write(tiny_run.workdir, str(folder), tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    assert [name for line in said for name in ("a.jpg", "b.png") if name in line] == [
        "a.jpg",
        "b.png",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_full_disk_leaves_what_is_finished(
    tiny_run, photographs, predicted, tmp_path
):
    output = tmp_path / "out"
    predictions.write(tiny_run.workdir, str(photographs / "odd.png"), output)
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copyfile(photographs / "odd.png", folder / "a.png")
    shutil.copyfile(photographs / "large.jpg", folder / "b.jpg")
    # The mask has room, then the overlay of the small photograph too.
    room = (predicted / "overlays" / "odd.jpg").stat().st_size + 999
    assert (predicted / "overlays" / "large.jpg").stat().st_size > room
    for size, finished in (
        (500, ["masks/a.png"]),
        (room, ["masks/a.png", "overlays/a.jpg", "predictions.csv"]),
    ):
        with full_disk.limit(size), pytest.raises(UserError, match="make room there"):
            predictions.write(tiny_run.workdir, str(folder), output)
        left = [str(path.relative_to(output)) for path in output.rglob("[!.]*.*")]
        assert [
            name for name in sorted(left) if "b.png" not in name and "b.jpg" not in name
        ] == finished
    assert [*read_csv(output)] == ["a"]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    # Nothing that is left there is somebody else's.
    predictions.write(tiny_run.workdir, str(photographs / "wide.png"), output)
    assert read_csv(output).keys() == {"wide"}


def test_the_output_is_checked_before_the_network_is_read(photographs, tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        predictions.write(photographs / "nowhere", str(photographs), tmp_path)


def test_somebody_elses_picture_is_kept_and_the_others_written(
    tiny_run, photographs, tmp_path, monkeypatch
):
    """Somebody puts a file where the third photograph's mask is to be."""
    output = tmp_path / "out"
    add = files.Growing.add

    def draw_and_add(folder, part):
        if "masks/square.png" in part.files:
            (output / "masks").mkdir(parents=True, exist_ok=True)
            (output / "masks/square.png").write_text("drawn by hand")
        add(folder, part)

    monkeypatch.setattr(files.Growing, "add", draw_and_add)
    failures, *_ = predictions.write(tiny_run.workdir, str(photographs), output)
    (failure,) = failures
    assert "masks/square.png is there already, and mtl_jax did not write it" in failure
    assert (output / "masks/square.png").read_text() == "drawn by hand"
    assert read_csv(output).keys() == SIZES.keys() - {"square"}
    with pytest.raises(UserError, match="masks/square.png, which was changed since"):
        predictions.write(tiny_run.workdir, str(photographs), output)


def test_photographs_of_the_same_stem(tiny_run, photographs, tmp_path):
    folder = tmp_path / "in"
    for place, source in (
        ("a/eye.png", "odd.png"),
        ("b/eye.png", "wide.png"),
        ("b/eye.jpg", "large.jpg"),
        ("b/other.png", "square.png"),
        ("œ.png", "square.png"),
        ("bad\udcff.png", "square.png"),
        (f"{'x' * 251}.png", "square.png"),
    ):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes((photographs / source).read_bytes())
    output = tmp_path / "out"
    predictions.write(tiny_run.workdir, str(folder / "**" / "*.*"), output)
    rows = read_csv(output)
    assert rows.keys() == {"eye", "eye_2", "eye_3", "other", "œ", "bad_xff", "x" * 240}
    sizes = {(int(row["width"]), int(row["height"])) for row in rows.values()}
    assert sizes == set(SIZES.values())
    for row in rows.values():
        with Image.open(output / row["mask"]) as image:
            assert image.size == (int(row["width"]), int(row["height"]))


def test_names_are_distinct_stems():
    names = {
        "a/x.png": "x",
        "b/x.png": "x_3",
        "b/x_2.jpg": "x_2",
        "c/x.png": "x_4",
        "c/X.png": "X_5",
        "c/X_2.png": "X_2_2",
        "y.jpg": "y",
        "d/e\u0301.png": "e\u0301",
        "e/\u00e9.png": "\u00e9_2",
        "bad\udcff.png": "bad_xff",
        "two\nlines.png": "two_lines",
        "a" * 251 + ".jpg": "a" * 240,
        "a" * 251 + ".png": "a" * 240 + "_2",
        "\u03bc" * 126: "\u03bc" * 120,
    }
    found = predict.distinct_names([pathlib.Path(name) for name in names])
    assert [str(path) for path in found] == [*names]
    assert [*found.values()] == [*names.values()]


def test_the_disk_and_the_installation_end_the_run_on_all():
    failures = []
    path = pathlib.Path("bad\udcff.png")
    assert predict.attempt(failures, path, pow, 2, exp=3) == 8
    assert predict.attempt(failures, path, pow, 0, -1) is None
    (failure,) = failures
    assert failure.startswith("bad\\xff.png cannot be used (ZeroDivisionError: 0.0 ")
    with pytest.raises(FileNotFoundError):
        predict.attempt(failures, path, pathlib.Path("absent").read_bytes)
    with pytest.raises(ModuleNotFoundError):
        predict.attempt(failures, path, importlib.import_module, "absent_module")


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("matplotlib", {}),
        ("pyarrow", {"parquet": True}),
        ("mtl_jax.reporting.handout", {"report": "pdf"}),
    ],
)
def test_what_is_not_installed_is_missed_before_the_network_is_read(
    module, flags, photographs, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=module):
        predictions.write(
            tmp_path / "nowhere", str(photographs), tmp_path / "out", **flags
        )
    assert not (tmp_path / "out").exists()


def test_a_prediction_replaces_an_earlier_one(tiny_run, photographs, tmp_path):
    output = tmp_path / "out"
    predictions.write(tiny_run.workdir, str(photographs / "odd.png"), output)
    predictions.write(tiny_run.workdir, str(photographs / "wide.png"), output)
    assert [path.name for path in (output / "masks").iterdir()] == ["wide.png"]
    assert set(read_csv(output)) == {"wide"}


def test_somebody_elses_folder_is_left_alone(tiny_run, photographs, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        predictions.write(tiny_run.workdir, str(photographs), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_photographs(tiny_run, tmp_path):
    (tmp_path / "in").mkdir()
    for place in ("in", "nowhere", "in/*.png"):
        with pytest.raises(UserError):
            predictions.write(tiny_run.workdir, str(tmp_path / place), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("task", ["glaucoma", "fovea"])
def test_networks_of_one_task(request, task, photographs, tmp_path):
    run = request.getfixturevalue(f"{task}_run")
    written = predictions.write(run.workdir, str(photographs), tmp_path / "out")
    assert (written.failures, written.notes) == ([], [])
    rows = read_csv(tmp_path / "out")
    assert set(rows) == set(SIZES)
    always = {"image", "file", "width", "height", "overlay"}
    filled = {
        "glaucoma": {"glaucoma", "probability", "probability_fc"},
        "fovea": {"fovea_x", "fovea_y"},
    }[task]
    for row in rows.values():
        assert {key for key, value in row.items() if value} == always | filled
    assert not (tmp_path / "out" / "masks").exists()
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 4
