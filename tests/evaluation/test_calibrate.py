"""Averages and calibrations of trained networks, from workdirs to tables."""

import csv
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import small_encoder
from sklearn.metrics import roc_curve
from training_fixtures import write_photographs

from mtl_jax import configuration, workdirs
from mtl_jax.data import folder, pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.evaluation.calibrate import calibrate
from mtl_jax.inference import calibration
from mtl_jax.reporting import predictions
from mtl_jax.reporting.terminal import calibration_text, metrics_text

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ("probability_fc", "probability_vcdr", "probability")


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def evaluated(workdir, **options):
    """Numbers of all images by column, the folder, and the metrics."""
    place, metrics = evaluate.evaluate(workdir, **options)
    return table(place / "per_image.csv"), place, metrics


def table(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        key: np.array([row[key] and float(row[key]) for row in rows])
        for key in rows[0]
        if key not in ("image_id", "image", "file", "quality", "mask", "overlay")
    }


@pytest.fixture(scope="module")
def workdir(tiny_run, tmp_path_factory):
    return tiny_run.copy(tmp_path_factory.mktemp("run") / "a")


@pytest.fixture(scope="module")
def drawn(make_config, random_variables, tmp_path_factory):
    """A function that writes a workdir with a network of random weights."""

    def write(fields=None, seed=0, **top_level):
        fields = {"model.encoder": "vgg13", **(fields or {})}
        config = make_config(fields, **top_level)
        place = tmp_path_factory.mktemp("drawn") / "run"
        workdirs.write_network(
            place,
            config,
            **random_variables(configuration.build(config).model, seed),
            image_size=32,
            shape="stretch",
            origin={},
        )
        return place

    return write


@pytest.fixture(scope="module")
def plain(workdir):
    return evaluated(workdir)


def flips(images):
    return [images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]]


def back(maps, number):
    return flips(maps)[number]


def by_hand(networks, config):
    """Mean probabilities and points of the test images, over networks and flips."""
    data = config.data
    opened = pipeline.open_split(
        pipeline.open_dataset(data.data_dir, data.dataset), "test"
    )
    images = opened.take(range(len(opened)))["image"]
    ys, xs = np.mgrid[:32, :32]
    classes, points = [], []
    for network in networks:
        for number, turned in enumerate(flips(images)):
            padded = np.concatenate([turned, turned[:2]])
            found = [network({"image": padded[i : i + 4]})[0] for i in (0, 4)]
            logits = {k: np.concatenate([f[k] for f in found])[:6] for k in found[0]}
            classes.append(sigmoid(logits["glaucoma"]))
            maps = sigmoid(back(logits["fovea"], number))
            mass = maps.sum((1, 2))
            points.append([(maps * axis).sum((1, 2)) / mass for axis in (xs, ys)])
    return np.array(classes), np.array(points)


def test_flips_are_averaged(workdir, tiny_run, plain):
    found, place, metrics = evaluated(workdir, tta=True)
    assert place.name == "test-model-tta"
    assert metrics["average"] == 4
    assert "average" not in plain[2]
    classes, points = by_hand([workdirs.load(workdir)], tiny_run.config)
    assert classes.std(0).max() > 1e-4
    assert found["probability_fc"] == pytest.approx(classes.mean(0), abs=1e-5)
    for axis, column in enumerate(("fovea_x", "fovea_y")):
        expected = points[:, axis].mean(0)
        assert found[column] == pytest.approx(expected, abs=1e-3)
    spread = np.sqrt(points.var(0).sum(0))
    assert found["fovea_spread"] == pytest.approx(spread, abs=1e-3)
    assert (found["probability_spread"] > 0).all()
    assert set(plain[0]["fovea_spread"]) == {""}
    # Losses are those of the images as they are.
    for name in ("glaucoma", "disc", "cup", "fovea"):
        assert (found[f"loss_{name}"] == plain[0][f"loss_{name}"]).all()


def test_networks_and_flips_are_averaged(workdir, drawn, tiny_run, plain):
    other = drawn(seed=1)
    found, place, metrics = evaluated([workdir, other], tta=True)
    assert place.parent == workdir / "evaluation"
    assert re.fullmatch("test-model-average2-[0-9a-f]{8}-tta", place.name)
    networks = [workdirs.load(place) for place in (workdir, other)]
    classes, points = by_hand(networks, tiny_run.config)
    assert len(classes) == metrics["average"] == 8
    assert metrics["workdirs"] == [str(workdir), str(other)]
    assert found["probability_fc"] == pytest.approx(classes.mean(0), abs=1e-5)
    for axis, column in enumerate(("fovea_x", "fovea_y")):
        expected = points[:, axis].mean(0)
        assert found[column] == pytest.approx(expected, abs=1e-3)
    assert metrics["num_parameters"] == 2 * plain[2]["num_parameters"]
    assert metrics["checkpoint"] == f"{plain[2]['checkpoint']},0"
    # Nobody measured the other's training.
    assert metrics["seconds_per_step"] is None
    assert not (other / "evaluation").exists()


def test_copies_of_a_network_say_what_it_says(workdir, tiny_run, plain, tmp_path):
    found, place, metrics = evaluated([workdir, tiny_run.copy(tmp_path / "copy")])
    assert re.fullmatch("test-model-average2-[0-9a-f]{8}", place.name)
    for column in (*PARTS, "vcdr", "dice_disc", "fovea_x", "fovea_error"):
        assert found[column] == pytest.approx(plain[0][column], abs=1e-4)
    assert found["probability_spread"] == pytest.approx(0, abs=1e-9)
    assert metrics["seconds_per_step"] == 2 * plain[2]["seconds_per_step"]


def test_prediction_averages(workdir, complete_data, shared_dir, tmp_path):
    photographs = str(shared_dir / "complete" / "p1*.png")
    predictions.write(workdir, photographs, tmp_path / "one")
    predictions.write(workdir, photographs, tmp_path / "tta", tta=True)
    one, tta = (table(tmp_path / x / "predictions.csv") for x in ("one", "tta"))
    for name in ("probability_spread", "vcdr_spread", "fovea_spread"):
        assert set(one[name]) == {""}
    assert (tta["probability_spread"] > 0).all()
    assert (tta["fovea_spread"] > 0).all()
    assert (one["probability"] != tta["probability"]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ("disc", "cup")}, r"differ in tasks .*\('cup', 'disc'\)"),
        ({"evaluation.connectivity": 4}, "differ in post-processing .*cannot be av"),
    ],
)
def test_networks_that_do_not_fit_together(workdir, drawn, fields, message):
    other = drawn(fields)
    for function in (evaluate.evaluate, calibrate):
        with pytest.raises(UserError, match=message):
            function([workdir, other])
    with pytest.raises(UserError, match="--workdir is empty"):
        evaluate.evaluate([])


def test_networks_of_several_folds_meet_on_the_test_split_alone(drawn):
    folders = [drawn({"data.fold": k, "data.num_folds": 3}) for k in ("0", "1")]
    with pytest.raises(UserError, match="different folds .*name workdirs of one"):
        evaluate.evaluate(folders, split="validation")
    with pytest.raises(UserError, match="different folds .*name workdirs of one"):
        calibrate(folders)
    _, metrics = evaluate.evaluate(folders)
    assert metrics["average"] == 2


def test_the_data_set_of_any_member_is_refused(drawn, folder_data):
    data_dir, dataset = folder_data
    other = drawn({"data.data_dir": data_dir, "data.dataset": dataset})
    with pytest.raises(UserError, match="different folds or data sets"):
        evaluate.evaluate(
            [drawn(), other], data_dir=data_dir, dataset=dataset, split="train"
        )


# Calibration


@pytest.fixture(scope="module")
def fitted(tiny_run, tmp_path_factory):
    """A calibrated copy of the run, and what was fitted."""
    place = tiny_run.copy(tmp_path_factory.mktemp("calibrated") / "run")
    path, found = calibrate(place, sensitivity=0.9)
    assert path == place / "calibration.json"
    return place, found


def test_what_is_fitted_is_that_of_the_validation_split(workdir, fitted):
    rows, *_ = evaluated(workdir, split="validation")
    _, found = fitted
    labels = rows["glaucoma"].astype(int)
    assert (found.num_images, found.num_glaucoma) == (6, labels.sum())
    expected = calibration.fit(
        rows["probability_fc"], rows["probability_vcdr"], labels, sensitivity=0.9
    )
    for name in ("temperature_fc", "temperature_vcdr", "weight_fc", "threshold"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3)
    assert found.wished_sensitivity == 0.9
    # On so few photographs, 0.9 of them are all.
    assert found.sensitivity == 1.0


@pytest.fixture(scope="module")
def calibrated(fitted):
    return evaluated(fitted[0])


def test_evaluation_uses_it(fitted, calibrated, plain):
    _, found = fitted
    rows, place, metrics = calibrated
    assert place.name == "test-model"
    fc = calibration.scale(plain[0]["probability_fc"], found.temperature_fc)
    ratio = calibration.scale(plain[0]["probability_vcdr"], found.temperature_vcdr)
    joined = found.weight_fc * fc + (1 - found.weight_fc) * ratio
    expected = calibration.scale(joined, found.temperature)
    assert rows["probability_fc"] == pytest.approx(fc, abs=1e-6)
    assert rows["probability_vcdr"] == pytest.approx(ratio, abs=1e-6)
    assert rows["probability"] == pytest.approx(expected, abs=1e-6)
    for name in PARTS:
        before = rows[f"{name}_uncalibrated"]
        assert before == pytest.approx(plain[0][name], abs=1e-9)
        assert f"{name}_uncalibrated" not in plain[0]
    # Everything else is as it was.
    assert (rows["dice_disc"] == plain[0]["dice_disc"]).all()
    assert rows["diagnosis"].tolist() == (expected >= found.threshold).tolist()
    diagnosis, label = rows["diagnosis"], rows["glaucoma"]
    assert metrics["sensitivity"] == pytest.approx(diagnosis[label == 1].mean())
    assert metrics["specificity"] == pytest.approx(1 - diagnosis[label == 0].mean())
    before = metrics["calibration"]["uncalibrated"]["calibration_error"]
    assert before == plain[2]["calibration_error"]
    assert "calibration" not in plain[2]
    text = metrics_text(metrics)
    assert f"\ncalibrated on 6 photographs, {found.num_glaucoma} with glaucoma" in text
    assert f"uncalibrated {before:.3f}" in text
    assert f"{'threshold of the diagnosis':33}{found.threshold:14.3f}" in text
    assert "calibrated" not in metrics_text(plain[2])


def test_the_uncalibrated_stay_obtainable(fitted, plain):
    rows, place, metrics = evaluated(fitted[0], calibrated=False)
    assert place.name == "test-model-uncalibrated"
    assert rows.keys() == plain[0].keys()
    assert (rows["probability"] == plain[0]["probability"]).all()
    assert metrics == plain[2]


def test_another_arrangement_is_not_calibrated(
    fitted, plain, folder_data, shared_dir, tmp_path
):
    rows, _, metrics = evaluated(fitted[0], tta=True)
    assert "probability_uncalibrated" not in rows
    assert "calibration.json is for 1 workdir at checkpoint" in metrics["note"]
    assert "this is 1 workdir at" in metrics["note"]
    assert "with --tta: probabilities are not calibrated" in metrics["note"]
    _, _, metrics = evaluated(fitted[0], checkpoint="latest")
    if metrics["checkpoint"] != plain[2]["checkpoint"]:
        assert "note" in metrics
    photographs = str(shared_dir / "photographs" / "p1*.png")
    failures, notes, *_ = predictions.write(
        fitted[0], photographs, tmp_path / "out", tta=True
    )
    assert failures == []
    assert any("probabilities are not calibrated" in note for note in notes)


def test_prediction_uses_it(fitted, folder_data, shared_dir, tmp_path):
    place, found = fitted
    photographs = str(shared_dir / "photographs" / "p*.png")
    for name, is_calibrated in (("plain", False), ("calibrated", True)):
        said = predictions.write(
            place, photographs, tmp_path / name, calibrated=is_calibrated
        )
        assert said.failures == []
    plain, rows = (
        table(tmp_path / name / "predictions.csv") for name in ("plain", "calibrated")
    )
    fc = calibration.scale(plain["probability_fc"], found.temperature_fc)
    assert rows["probability_fc"] == pytest.approx(fc, abs=1e-6)
    diagnosis = rows["probability"] >= found.threshold
    assert rows["glaucoma"].tolist() == diagnosis.tolist()
    assert (plain["glaucoma"] == (plain["probability"] >= 0.5)).all()


def test_flips_and_networks_are_calibrated_together(tiny_run, drawn, tmp_path):
    """With a specificity; and the file says what it belongs to."""
    folders = [tiny_run.copy(tmp_path / "run"), drawn(seed=1)]
    path, found = calibrate(folders, tta=True, specificity=0.6)
    assert found.specificity >= 0.6
    network = workdirs.load_calibrated(folders, tta=True)
    assert network.calibration == found
    assert network.note == ""
    # By default, flips are those of the calibration.
    network = workdirs.load_calibrated(folders)
    assert network.calibration == found
    assert network.is_flipped
    assert network.num_members == 8
    network = workdirs.load_calibrated(folders, tta=False)
    assert network.calibration is None
    assert "with --tta, this is 2 workdirs" in network.note
    # Networks that it is not for are not flipped.
    assert not workdirs.load_calibrated(folders[:1]).is_flipped
    arrangement = json.loads(path.read_text())["arrangement"]
    assert arrangement["tta"] is True
    assert arrangement["checkpoint"] == network.checkpoint
    assert len({*arrangement["networks"]}) == 2
    rows, _, metrics = evaluated(folders, split="validation", tta=True)
    assert metrics["specificity"] == pytest.approx(found.specificity)
    assert metrics["sensitivity"] == pytest.approx(found.sensitivity)
    # No other threshold with this specificity has a better sensitivity.
    false, true, _ = roc_curve(
        rows["glaucoma"], rows["probability"], drop_intermediate=False
    )
    assert found.sensitivity == pytest.approx(true[1 - false >= 0.6].max())
    # Another network of the same step and config.
    other = workdirs.load_calibrated([folders[0], drawn(seed=2)], tta=True)
    assert other.calibration is None
    assert "is for other networks: probabilities are not calibrated" in other.note


def test_what_cannot_be_calibrated(workdir, fovea_run, drawn, folder_data, tmp_path):
    for split, said in (("train", "is trained on"), ("test", "is tested on")):
        with pytest.raises(UserError, match=f"{said}.*leave out --split"):
            calibrate(workdir, split=split)
    with pytest.raises(UserError, match="leave out --sensitivity or --specificity"):
        calibrate(workdir, sensitivity=0.9, specificity=0.9)
    for value in (0.0, 1.0, -1.0, 7.0, float("nan")):
        with pytest.raises(UserError, match="--specificity=.*above 0 and below 1"):
            calibrate(workdir, specificity=value)
    with pytest.raises(UserError, match="gives no probability of glaucoma"):
        calibrate(fovea_run.workdir)
    data_dir, dataset = folder_data
    other = drawn({"data.data_dir": data_dir, "data.dataset": dataset})
    with pytest.raises(UserError, match="has no split 'validation'; it has train"):
        calibrate(other)
    write_photographs(tmp_path / "photographs", complete=True)
    path = tmp_path / "photographs" / "manifest.csv"
    path.write_text(path.read_text().replace("1,validation", "0,validation"))
    version_dir = folder.build(
        tmp_path,
        tmp_path / "photographs",
        image_size=32,
        shape="stretch",
        accept=["fovea_far"],
    )
    name = f"fundus_folder/{version_dir.parent.name}"
    healthy = drawn({"data.data_dir": str(tmp_path), "data.dataset": name})
    with pytest.raises(UserError, match="0 photographs with glaucoma and 3 without"):
        calibrate(healthy)
    assert not list(tmp_path.glob("**/calibration.json"))
    assert not (workdir / "calibration.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("threshold", "treshold"),
        lambda text: text.replace('"networks"', '"workdirs"'),
        lambda text: re.sub('"temperature": .*', '"temperature": 0,', text),
        lambda text: re.sub('"weight_fc": .*', '"weight_fc": NaN,', text),
        lambda text: re.sub('"threshold": .*', '"threshold": null,', text),
        lambda text: re.sub('"threshold": .*', '"threshold": "high",', text),
    ],
)
def test_a_damaged_calibration_is_named(fitted, change):
    place, _ = fitted
    path = place / "calibration.json"
    before = path.read_text()
    assert change(before) != before
    try:
        path.write_text(change(before))
        with pytest.raises(UserError, match=r"calibration.json cannot be read \(.*scr"):
            workdirs.load_calibrated([place])
        assert workdirs.load_averaged([place]).calibration is None
    finally:
        path.write_text(before)


def run(*arguments):
    return subprocess.run(
        [sys.executable, small_encoder.__file__, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )


@pytest.mark.slow
def test_the_command(tiny_run, compiled, tmp_path):
    place = tiny_run.copy(tmp_path / "run")
    script = ROOT / "scripts/calibrate.py"
    finished = run(script, f"--workdir={place}", "--sensitivity=0.9", "--tta")
    assert finished.returncode == 0, finished.stderr
    network = workdirs.load_calibrated([place], tta=True)
    assert finished.stdout.startswith(calibration_text(network.calibration))
    assert finished.stdout.endswith(f"\n{place / 'calibration.json'}\n")
    assert "calibrated on 6 photographs, " in finished.stdout
    assert "Fewer than 20 photographs of one class" in finished.stdout
    finished = run(ROOT / "scripts/evaluate.py", f"--workdir={place}")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert f"{place / 'evaluation/test-model-tta/metrics.json'}\n" in finished.stdout
    finished = run(ROOT / "scripts/evaluate.py", f"--workdir={place}", "--notta")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.startswith(f"note: {place / 'calibration.json'} is for 1 w")
