"""`mtl_jax.load` and what `predict` writes for the same photographs."""

import csv
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mtl_jax
from mtl_jax import workdirs
from mtl_jax.data import images
from mtl_jax.data.synthetic import renderer
from mtl_jax.errors import UserError
from mtl_jax.inference import calibration
from mtl_jax.reporting import predictions

pytest_plugins = ("untrained_network",)

# More than a batch; the last is no fundus.
SIZES = ((72, 90), (64, 64), (51, 37), (451, 600), (40, 40), (48, 64))
OTHER = "5"


@pytest.fixture(scope="module")
def workdir(network_folder, tmp_path_factory):
    """A network that averages over flips, and is calibrated."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(network_folder, folder)
    fitted = calibration.fit([0.2, 0.6, 0.4], [0.3, 0.4, 0.7], [0, 1, 1])
    flipped = workdirs.load_averaged([folder], tta=True)
    workdirs.write_calibration([folder], flipped, fitted)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for index, size in enumerate(SIZES):
        rng, camera = np.random.default_rng(index), renderer.EVALUATION_CAMERA
        drawn = renderer.render(rng, size, camera, bool(index % 2)).photograph
        if str(index) == OTHER:
            # Blue where blood is red.
            drawn = drawn[..., ::-1].copy()
        Image.fromarray(drawn).save(folder / f"{index}.{'jpg' if index % 2 else 'png'}")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def written(workdir, photographs, tmp_path_factory):
    output = tmp_path_factory.mktemp("written") / "out"
    predictions.write(workdir, str(photographs[0].parent), output)
    with (output / "predictions.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    return output, rows


def cell(value):
    return "" if value is None else str(value)


@pytest.mark.parametrize("form", [str, images.read_photograph])
def test_it_says_what_predict_writes(form, workdir, photographs, written):
    output, rows = written
    network = mtl_jax.load(str(workdir))
    results = network([form(path) for path in photographs])
    assert len(results) == len(photographs)
    for path, result in zip(photographs, results, strict=True):
        row = rows[path.stem]
        assert row["quality"] == "; ".join(result.quality)
        for name in ("probability", "probability_fc", "probability_vcdr", "vcdr"):
            assert row[name] == cell(getattr(result, name)), name
        for name, value in result.spread.items():
            assert row[name] == cell(value), name
        diagnosis = None if result.glaucoma is None else int(result.glaucoma)
        assert row["glaucoma"] == cell(diagnosis)
        if path.stem == OTHER:
            assert row["quality"].startswith("not a fundus")
            assert (result.probability, result.masks, result.points) == (None, {}, {})
            continue
        assert 0 < result.probability < 1
        assert result.spread["probability_spread"] > 0
        grey = images.read_mask(output / row["mask"])
        np.testing.assert_array_equal(result.masks["cup"] > 0, grey == 0)
        inside = (result.masks["disc"] > 0) | (result.masks["cup"] > 0)
        np.testing.assert_array_equal(inside, grey < 255)
        point = result.points["fovea"] or (None, None)
        for axis, value in zip("xy", point, strict=True):
            assert row[f"fovea_{axis}"] == cell(value and round(value, 2))


def test_one_photograph_is_as_one_of_a_list(workdir, photographs):
    network = mtl_jax.load([workdir])
    alone = network(photographs[3])
    *_, last = network(photographs[:4])
    assert (alone.probability, alone.spread) == (last.probability, last.spread)
    np.testing.assert_array_equal(alone.masks["disc"], last.masks["disc"])
    assert network([]) == []


def test_mistakes_get_a_sentence(workdir, tmp_path, monkeypatch):
    network = mtl_jax.load(workdir)
    small = np.zeros((9, 64, 3), np.uint8)
    for array in (small[..., 0], np.zeros((64, 64, 3)), small):
        with pytest.raises(UserError, match=r"no photograph; give uint8 \[H, W, 3\]"):
            network(array)
    with pytest.raises(UserError, match=r"nowhere\.jpg does not exist"):
        network(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match="There is no workdir"):
        mtl_jax.load(tmp_path / "nowhere")
    monkeypatch.setattr(workdirs, "BUILT_IN", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no trained network of its own; name the"):
        mtl_jax.load()


def test_importing_it_is_light():
    """It needs no extra, which `load` names if it is missing; and no data set."""
    program = """
import sys
sys.modules["safetensors"] = None
import mtl_jax
assert not {"jax", "numpy", "flax", "absl"} & {*sys.modules}
try:
    mtl_jax.load()
except mtl_jax.errors.UserError as error:
    print(error)
import mtl_jax.reporting.predictions
heavy = {"grain", "jinja2", "matplotlib", "orbax.checkpoint", "tensorflow_datasets"}
assert not heavy & {*sys.modules}
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert finished.stdout == (
        "safetensors is not installed; install mtl_jax[data], or mtl_jax[all] "
        "for every command.\n"
    )
