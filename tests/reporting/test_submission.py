"""Submissions, scored by a transcription of the challenge's evaluation program."""

import csv
import math

import numpy as np
import openpyxl
import pytest
import refuge_trees
from PIL import Image
from sklearn.metrics import roc_auc_score

from mtl_jax import files, metrics, workdirs
from mtl_jax.annotations import LABELS
from mtl_jax.data import folder, geometry, pipeline, refuge
from mtl_jax.errors import UserError
from mtl_jax.inference import scoring
from mtl_jax.inference.prediction import Prediction
from mtl_jax.reporting import evaluation, predictions, submission

pytest_plugins = ("training_fixtures",)


def read_table(path, header):
    with path.open(newline="") as file:
        first, *rows = csv.reader(file)
    assert first == header
    return {name: np.array(values, float) for name, *values in rows}


def challenge_dice(a, b):
    with np.errstate(invalid="ignore"):
        return 2 * np.float64((a & b).sum()) / (float(a.sum()) + float(b.sum()))


def challenge_ratio(mask):
    heights = [(part.sum(axis=0)).max() for part in (mask == 0, mask < 255)]
    return heights[0] / (heights[1] + 1e-7)


def challenge_scores(folder, truth):
    """What the challenge's program says.

    Args:
      folder: a submission.
      truth: by stem: grey mask, fovea (x, y), label.
    """
    risks = read_table(
        folder / "classification_results.csv", ["FileName", "Glaucoma Risk"]
    )
    foveas = read_table(
        folder / "fovea_location_results.csv", ["ImageName", "Fovea_X", "Fovea_Y"]
    )
    names = {path.name for path in (folder / "segmentation").iterdir()}
    assert names == {f"{stem}.bmp" for stem in truth}
    assert set(risks) == set(foveas) == {f"{stem}.jpg" for stem in truth}
    cup, disc, ratio, distance = [], [], [], []
    for stem, (mask, xy, _) in truth.items():
        with Image.open(folder / "segmentation" / f"{stem}.bmp") as image:
            assert image.format == "BMP"
            predicted = np.asarray(image)
        assert predicted.shape == mask.shape
        assert set(np.unique(predicted)) <= {0, 128, 255}
        cup.append(challenge_dice(predicted == 0, mask == 0))
        disc.append(challenge_dice(predicted < 255, mask < 255))
        ratio.append(abs(challenge_ratio(predicted) - challenge_ratio(mask)))
        distance.append(np.linalg.norm(foveas[f"{stem}.jpg"] - xy))
    labels = [label for _, _, label in truth.values()]
    scores = [risks[f"{stem}.jpg"][0] for stem in truth]
    return {
        "auc": roc_auc_score(labels, scores),
        "dice_cup": np.mean(cup),
        "dice_disc": np.mean(disc),
        "vcdr_mae": np.mean(ratio),
        "fovea_error_native": np.mean(distance),
    }


def grey(disc, cup):
    return np.where(cup > 0, 0, np.where(disc > 0, 128, 255))


def rectangle(rows, columns, size=(60, 50)):
    mask = np.zeros(size, np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


DISC, CUP = rectangle((10, 30), (10, 30)), rectangle((14, 24), (15, 25))
EMPTY = np.zeros_like(DISC)


def prediction(disc, cup, fovea_xy, probability=0.5):
    return Prediction(
        size=disc.shape,
        found={"disc": disc, "cup": cup, "fovea": np.asarray(fovea_xy)},
        probability=probability,
    )


def submitted(folder, predictions):
    with files.growing_directory(folder) as growing:
        submission.write(growing, predictions.items())
    return folder


def test_the_truth_scores_best(tmp_path):
    truth = {
        "T0001": (grey(DISC, CUP), (20.5, 41.25), 1),
        "T0002": (grey(DISC, EMPTY), (7.0, 3.0), 0),
    }
    folder = submitted(
        tmp_path / "truth",
        {
            "T0001.jpg": prediction(DISC, CUP, (20.5, 41.25), 0.9),
            "T0002.JPG": prediction(DISC, CUP * 0, (7.0, 3.0), 0.1),
        },
    )
    scores = challenge_scores(
        folder, {"T0001": truth["T0001"], "T0002": truth["T0002"]}
    )
    assert scores["dice_disc"] == scores["auc"] == 1
    assert scores["vcdr_mae"] == scores["fovea_error_native"] == 0
    # 0 / 0 there: two empty cups. Ours is 1.
    assert math.isnan(scores["dice_cup"])
    assert metrics.dice(EMPTY, EMPTY) == 1


def test_known_shifts(tmp_path):
    """Everything 5 columns to the right and the fovea at (3, 4) from its place."""
    truth = {
        f"T000{i}": (grey(DISC, CUP), (20.0, 40.0), label)
        for i, label in ((1, 1), (2, 0))
    }
    moved = [np.roll(mask, 5, axis=1) for mask in (DISC, CUP)]
    folder = submitted(
        tmp_path / "moved",
        {f"{stem}.png": prediction(*moved, (23.0, 44.0)) for stem in truth},
    )
    assert challenge_scores(folder, truth) == pytest.approx(
        {
            "auc": 0.5,
            "dice_cup": 0.5,
            "dice_disc": 0.75,
            "vcdr_mae": 0.0,
            "fovea_error_native": 5.0,
        }
    )


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("submission")
    workdir = tiny_run.copy(place / "run")
    _, found = evaluation.write(
        workdir,
        split="test",
        resolution="native",
        checkpoint="latest",
        write_submission=place / "submission",
    )
    return place / "submission", found


def test_evaluation_agrees_with_the_challenges_program(evaluated, synthetic_data):
    """A hardly trained network: masks that are empty, or cup outside of the disc."""
    folder, found = evaluated
    table = pipeline.open_split(pipeline.open_dataset(*synthetic_data), "test")
    truth = {}
    for i, label in enumerate(table.diagnoses()):
        native = table.native(i, LABELS)
        stem = table.details(i)["file_name"].removesuffix(".png")
        mask = grey(native["disc_mask"], native["cup_mask"])
        truth[stem] = (mask, native["fovea_xy"], label)
    expected = challenge_scores(folder, truth)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["num_images"]["vcdr_mae"] == 6


def truth_in_files(source):
    """The test split's annotations, read from REFUGE's own files."""
    book = openpyxl.load_workbook(
        source / "REFUGE-Test-GT" / "Glaucoma_label_and_Fovea_location.xlsx"
    )
    _, *rows = book.active.iter_rows(values_only=True)
    truth = {}
    for _, name, label, x, y in rows:
        stem = name.removesuffix(".jpg")
        (path,) = (source / "REFUGE-Test-GT" / "Disc_Cup_Masks").rglob(f"{stem}.bmp")
        with Image.open(path) as image:
            truth[stem] = (np.asarray(image), np.array([x, y]), label)
    return truth


def test_from_refuges_files_to_the_challenges_figures(tiny_run, tmp_path):
    """JPEG, BMP and XLSX files in; BMP and CSV files out, at odd native sizes."""
    source = refuge_trees.write(refuge_trees.official(), tmp_path / "source")
    version_dir = refuge.build(
        tmp_path / "data", source, image_size=32, allow_missing=True
    )
    _, found = evaluation.write(
        tiny_run.copy(tmp_path / "run"),
        resolution="native",
        data_dir=str(tmp_path / "data"),
        dataset=f"refuge/{version_dir.parent.name}",
        write_submission=tmp_path / "submission",
    )
    truth = truth_in_files(source)
    assert set(truth) == set(refuge_trees.STEMS["test"])
    expected = challenge_scores(tmp_path / "submission", truth)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0 < found["dice_disc"] < 1


def test_the_truth_of_refuges_files_scores_best(tmp_path):
    """What the builder keeps of an annotation is all of it."""
    source = refuge_trees.write(refuge_trees.official(), tmp_path / "source")
    version_dir = refuge.build(
        tmp_path / "data", source, image_size=32, allow_missing=True
    )
    table = pipeline.open_split(
        pipeline.open_dataset(tmp_path / "data", f"refuge/{version_dir.parent.name}"),
        "test",
    )
    predictions = {}
    for i, label in enumerate(table.diagnoses()):
        native = table.native(i, LABELS)
        predictions[table.details(i)["file_name"]] = prediction(
            native["disc_mask"], native["cup_mask"], native["fovea_xy"], float(label)
        )
    folder = submitted(tmp_path / "submission", predictions)
    assert challenge_scores(folder, truth_in_files(source)) == pytest.approx(
        {
            "auc": 1.0,
            "dice_cup": 1.0,
            "dice_disc": 1.0,
            "vcdr_mae": 0.0,
            "fovea_error_native": 0.0,
        },
        abs=1e-9,
    )


def test_the_fovea_error_is_that_of_float64_coordinates(tmp_path):
    """From a manifest's text to the score, with a network that answers at random."""
    height, width = 1300, 2056
    foveas = [(1234.5678901, 987.6543210123), (2055.123456789, 0.1), (1 / 3, 1299.0)]
    lines = ["image_id,image,fovea_x,fovea_y,split"]
    for i, (x, y) in enumerate(foveas):
        lines.append(f"eye{i},{i}.png,{x!r},{y!r},test")
        Image.new("RGB", (width, height)).save(tmp_path / f"{i}.png")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    version_dir = folder.build(tmp_path / "data", tmp_path, image_size=32)
    name = f"fundus_folder/{version_dir.parent.name}"
    table = pipeline.open_split(pipeline.open_dataset(tmp_path / "data", name), "test")
    logits = np.random.default_rng(0).normal(0, 3, (len(foveas), 32, 32))

    def network(batch):
        return {"fovea": logits}, {"fovea": np.zeros(len(batch["image"]))}

    rows = scoring.score_split(network, table, len(foveas), None, "native")
    mass = 1 / (1 + np.exp(-logits))
    for i, row in enumerate(rows):
        true_x, true_y = foveas[int(row["image_id"].removeprefix("eye"))]
        y, x = (np.average(axis, weights=mass[i]) for axis in np.indices((32, 32)))
        # Black photographs are padded above and below.
        found_x = (x + 0.5) * width / 32 - 0.5
        found_y = (y + 0.5) * width / 32 - 0.5 - (width - height) / 2
        expected = math.hypot(found_x - true_x, found_y - true_y)
        assert row["fovea_error_native"] == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize(
    ("disc", "cup", "wanted"),
    [
        # Cup that sticks out of the disc is disc, for both figures.
        (DISC, rectangle((25, 40), (15, 25)), None),
        (EMPTY, CUP, None),
        (DISC, EMPTY, None),
        (EMPTY, EMPTY, {"dice_disc": 0.0, "dice_cup": 0.0, "vcdr_mae": 0.5}),
    ],
)
def test_odd_masks_are_scored_as_there(disc, cup, wanted, tmp_path):
    found = prediction(disc, cup, (0.0, 0.0))
    folder = submitted(tmp_path / "s", {"T0001": found, "T0002": found})
    mask = grey(DISC, CUP)
    expected = challenge_scores(
        folder, {"T0001": (mask, (0, 0), 0), "T0002": (mask, (0, 0), 1)}
    )
    truth = {"glaucoma": None, "disc": DISC, "cup": CUP, "fovea": None}
    frame = geometry.whole(DISC.shape)
    details = {"image_id": "T0001", "frame": frame}
    one_mask = scoring.as_one_mask(found, truth)
    row = scoring.score_case(
        scoring.Case(0, details, (32, 32), frame, *one_mask, {}, {})
    )
    summary = scoring.summarize([row])
    for name in ("dice_disc", "dice_cup", "vcdr_mae"):
        assert summary[name] == pytest.approx(expected[name], abs=1e-6)
        if wanted:
            assert summary[name] == pytest.approx(wanted[name], abs=1e-6)


def test_prediction_in_the_challenges_format(tiny_run, evaluated, tmp_path):
    """The same photographs from files give the same submission."""
    folder, _ = evaluated
    network = workdirs.load(tiny_run.workdir, "latest")
    own = network.config.data
    table = pipeline.open_split(
        pipeline.open_dataset(own.data_dir, own.dataset), "test"
    )
    (tmp_path / "images").mkdir()
    pictures = table.take(range(len(table)))["image"]
    for i, picture in enumerate(pictures):
        name = table.details(i)["file_name"]
        Image.fromarray(picture).save(tmp_path / "images" / name)
    failures, *_ = predictions.write(
        tiny_run.workdir,
        str(tmp_path / "images"),
        tmp_path / "out",
        checkpoint="latest",
        form="refuge",
    )
    assert not failures
    assert {p.name for p in (tmp_path / "out").glob("[!.]*")} == {
        "segmentation",
        "classification_results.csv",
        "fovea_location_results.csv",
    }
    for name, header in (
        ("classification_results", ["FileName", "Glaucoma Risk"]),
        ("fovea_location_results", ["ImageName", "Fovea_X", "Fovea_Y"]),
    ):
        ours, theirs = (
            read_table(place / f"{name}.csv", header)
            for place in (tmp_path / "out", folder)
        )
        assert set(ours) == set(theirs)
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key], atol=1e-5)
    for path in (folder / "segmentation").iterdir():
        other = tmp_path / "out" / "segmentation" / path.name
        assert path.read_bytes() == other.read_bytes()


def test_a_network_without_some_task_makes_no_submission(glaucoma_run, tmp_path):
    workdir = glaucoma_run.copy(tmp_path / "run")
    message = "lacks disc, cup, fovea"
    with pytest.raises(UserError, match=message):
        evaluation.write(workdir, write_submission=tmp_path / "out")
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=message):
        predictions.write(workdir, str(tmp_path), tmp_path / "out", form="refuge")
    assert not (tmp_path / "out").exists()
    assert not (workdir / "evaluation").exists()


def test_two_photographs_of_one_name_make_no_submission(tmp_path):
    found = prediction(DISC, CUP, (0.0, 0.0))
    with pytest.raises(
        UserError, match=r"eye\.jpg and eye\.png would both be eye\.bmp"
    ):
        submitted(tmp_path / "s", {"eye.jpg": found, "eye.png": found})


def test_a_dot_in_a_name_begins_no_extension(tiny_run, tmp_path):
    for name in ("eye.1.png", "eye.2.png"):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / name)
    out = tmp_path / "out"
    written = predictions.write(tiny_run.workdir, str(tmp_path), out, form="refuge")
    assert not written.failures
    names = {path.name for path in (out / "segmentation").iterdir()}
    assert names == {"eye.1.bmp", "eye.2.bmp"}
    risks = read_table(
        out / "classification_results.csv", ["FileName", "Glaucoma Risk"]
    )
    assert set(risks) == {"eye.1.jpg", "eye.2.jpg"}


def test_a_folder_that_is_not_ours_is_refused_before_the_work(tiny_run, tmp_path):
    workdir = tiny_run.copy(tmp_path / "run")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "precious.txt").touch()
    with pytest.raises(UserError, match=r"something else .*precious\.txt"):
        evaluation.write(workdir, write_submission=tmp_path / "own")
    assert not (workdir / "evaluation").exists()
    assert (tmp_path / "own" / "precious.txt").exists()


def random_mask(rng):
    """Scattered pixels or a rectangle, on any side of the border; often nothing."""
    kind = rng.integers(4)
    if kind == 0:
        return np.zeros((13, 17), np.uint8)
    if kind == 1:
        return (rng.random((13, 17)) < rng.random()).astype(np.uint8)
    rows, columns = np.sort(rng.integers(0, (13, 17), (2, 2)), axis=0).T
    return rectangle(rows, columns + (0, 1), (13, 17))


def test_random_masks_are_scored_as_there(tmp_path):
    """Empty ones, cups outside of the disc, and everything in between."""
    rng = np.random.default_rng(5)
    empty = 0
    predictions, truths, rows = {}, {}, {}
    for i in range(300):
        stem = f"T{i:04d}"
        disc, cup, true_disc, true_cup = (random_mask(rng) for _ in range(4))
        xy, true_xy = rng.uniform(0, 13, (2, 2))
        found = prediction(disc, cup, xy, float(rng.random()))
        truth = {
            "glaucoma": int(rng.integers(2)),
            "disc": true_disc,
            "cup": true_cup,
            "fovea": true_xy,
        }
        frame = geometry.whole(disc.shape)
        details = {"image_id": stem, "frame": frame}
        one_mask = scoring.as_one_mask(found, truth)
        native = {"fovea": true_xy}
        case = scoring.Case(i, details, disc.shape, frame, *one_mask, native, {})
        predictions[stem], rows[stem] = found, scoring.score_case(case)
        truths[stem] = (grey(true_disc, true_cup), true_xy, truth["glaucoma"])
        empty += not (cup.any() and true_cup.any())
    assert empty > 50
    folder = submitted(tmp_path / "s", predictions)
    risks = read_table(
        folder / "classification_results.csv", ["FileName", "Glaucoma Risk"]
    )
    foveas = read_table(
        folder / "fovea_location_results.csv", ["ImageName", "Fovea_X", "Fovea_Y"]
    )
    for stem, (mask, true_xy, _) in truths.items():
        with Image.open(folder / "segmentation" / f"{stem}.bmp") as image:
            found = np.asarray(image)
        row = rows[stem]
        for name, a, b in (
            ("dice_cup", found == 0, mask == 0),
            ("dice_disc", found < 255, mask < 255),
        ):
            expected = challenge_dice(a, b)
            # Two empty masks: not a number there, 1 here.
            wanted = 1.0 if np.isnan(expected) else expected
            assert row[name] == pytest.approx(wanted, abs=1e-6)
        assert row["vcdr"] == pytest.approx(challenge_ratio(found), abs=1e-6)
        assert row["vcdr_true"] == pytest.approx(challenge_ratio(mask), abs=1e-6)
        distance = np.linalg.norm(foveas[f"{stem}.jpg"] - true_xy)
        assert row["fovea_error_native"] == pytest.approx(distance, abs=1e-6)
        assert row["probability"] == risks[f"{stem}.jpg"][0]
    expected = roc_auc_score(
        [label for *_, label in truths.values()],
        [risks[f"{stem}.jpg"][0] for stem in truths],
    )
    assert scoring.summarize(list(rows.values()))["auc"] == pytest.approx(expected)
