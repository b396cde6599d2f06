"""Photographs with wide dark borders, from their files to results in their pixels.

Their colours say what is where, so that an oracle reads the true maps off the image
that a network sees.
"""

import csv
import dataclasses
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mtl_jax import workdirs
from mtl_jax.data import folder, images, pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import predict
from mtl_jax.inference import scoring
from mtl_jax.reporting import evaluation, predictions

pytest_plugins = ("training_fixtures",)

NUM_IMAGES = 12
# Red, green and blue of the retina, the disc, the cup and the fovea.
RETINA, DISC, CUP, FOVEA = (150, 60, 0), (150, 60, 200), (150, 200, 200), (250, 60, 0)


@dataclasses.dataclass
class Eye:
    """A photograph of a round fundus that its edges cut off, above or on one side."""

    picture: np.ndarray
    disc: np.ndarray
    cup: np.ndarray
    fovea_xy: tuple[float, float]
    # Left, top, right and bottom of what is seen of the fundus.
    box: np.ndarray


def draw(number):
    rng = np.random.default_rng(number)
    height, width = rng.integers(180, 260), rng.integers(300, 420)
    radius = rng.uniform(0.45, 0.6) * height
    x, y = (rng.uniform(0.9, 1.1) * radius, height / 2)
    if number % 2:
        x = width - x
    rows, columns = np.mgrid[:height, :width]

    def inside(centre_x, centre_y, size):
        return np.hypot(columns - centre_x, rows - centre_y) <= size

    at = x + rng.uniform(0.2, 0.4) * radius, y + rng.uniform(-0.3, 0.3) * radius
    fovea = round(x - 0.4 * radius), round(y + rng.uniform(-0.2, 0.2) * radius)
    disc, cup = inside(*at, 0.25 * radius), inside(*at, 0.14 * radius)
    picture = np.zeros((height, width, 3), np.uint8)
    for where, colour in (
        (inside(x, y, radius), RETINA),
        (disc, DISC),
        (cup, CUP),
        (inside(*fovea, 0.1 * radius), FOVEA),
    ):
        picture[where] = colour
    # The fundus has a fine texture.
    fine = ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.5)
    texture = inside(x, y, radius) * 4 * fine / fine.std()
    picture[..., 1] = np.clip(picture[..., 1] + texture, 0, 255)
    low = np.array([x, y]) + 0.5 - radius
    box = np.array([*low, *(low + 2 * radius)])
    box = np.clip(box, 0, [width, height, width, height])
    return Eye(picture, disc, cup, fovea, box)


EYES = [draw(number) for number in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    place = tmp_path_factory.mktemp("source") / "eyes"
    place.mkdir()
    lines = ["image_id,image,disc_mask,cup_mask,fovea_x,fovea_y,glaucoma,split"]
    for i, eye in enumerate(EYES):
        Image.fromarray(eye.picture).save(place / f"{i}.png")
        for name, mask in (("disc", eye.disc), ("cup", eye.cup)):
            Image.fromarray(mask.astype(np.uint8) * 255).save(place / f"{name}{i}.png")
        x, y = eye.fovea_xy
        split = "train" if i < 6 else "validation" if i < 8 else "test"
        lines.append(f"{i},{i}.png,disc{i}.png,cup{i}.png,{x},{y},{i // 2 % 2},{split}")
    (place / "manifest.csv").write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def build(source, tmp_path_factory):
    """A function that builds a data set and returns where it is, and its name."""
    data_dir = tmp_path_factory.mktemp("data")

    def build(**options):
        version_dir = folder.build(data_dir, source, **options)
        return str(data_dir), f"fundus_folder/{version_dir.parent.name}"

    return build


@pytest.fixture(scope="module")
def run(build, make_config, tmp_path_factory):
    """A network trained for three steps on photographs in the shape `fov`."""
    data_dir, dataset = build(image_size=32)
    fields = {"data.data_dir": data_dir, "data.dataset": dataset}
    config = make_config(
        {"model.encoder": "vgg13", **fields},
        num_epochs=1,
        validate_every=1,
    )
    workdir = tmp_path_factory.mktemp("run") / "run"
    workdirs.train(config, workdir)
    return workdir


def oracle(batch):
    """Logits of what the colours say."""
    red, green, blue = np.moveaxis(np.asarray(batch["image"], float), -1, 0)
    logits = {"disc": blue - 100, "cup": green - 130, "fovea": red - 200}
    # Sums over pixels: the more abrupt the better.
    return {
        "glaucoma": np.zeros(red.shape[:-2]),
        **{task: np.float32(values / 5) for task, values in logits.items()},
    }


def oracle_with_losses(batch):
    logits = oracle(batch)
    return logits, {task: np.zeros(len(batch["image"])) for task in logits}


@pytest.mark.parametrize("shape", ["fov", "stretch"])
def test_the_true_maps_score_at_native_resolution(build, shape):
    builder = pipeline.open_dataset(*build(image_size=128, shape=shape))
    assert pipeline.shape(builder) == shape
    table = pipeline.open_split(builder, "test")
    for case in scoring.cases(oracle_with_losses, table, 4, None, "native"):
        eye = EYES[int(case.details["image_id"])]
        np.testing.assert_array_equal(case.truth["disc"], eye.disc)
        row = scoring.score_case(case)
        assert row["dice_disc"] > 0.97
        assert row["dice_cup"] > 0.95
        assert row["vcdr"] == pytest.approx(row["vcdr_true"], abs=0.05)
        assert row["fovea_error_native"] < 0.5
        assert row["fovea_x"] == pytest.approx(eye.fovea_xy[0], abs=0.5)
        assert row["fovea_y"] == pytest.approx(eye.fovea_xy[1], abs=0.5)
    # The same errors, in pixels of the model image.
    rows = [
        scoring.score_split(oracle_with_losses, table, 4, None, resolution)
        for resolution in ("model", "native")
    ]
    for at_model, at_native in zip(*rows, strict=True):
        assert at_model["dice_disc"] > 0.97
        for key in ("fovea_error", "fovea_error_native", "fovea_x", "fovea_y"):
            assert at_model[key] == pytest.approx(at_native[key], abs=1e-6)


def test_the_model_image_is_filled_by_the_field_of_view(build):
    builder = pipeline.open_dataset(*build(image_size=128))
    table = pipeline.open_split(builder, "test")
    for index in range(len(table)):
        details = table.details(index)
        eye = EYES[int(details["image_id"])]
        frame = details["frame"]
        assert details["native_size"] == frame.native_size == eye.picture.shape[:2]
        low, high = eye.box[:2], eye.box[2:]
        middle = np.array(frame.box[:2]) + np.array(frame.box[2:]) / 2
        np.testing.assert_allclose(middle, (low + high) / 2, atol=3)
        np.testing.assert_allclose(frame.box[2:], max(high - low), atol=4)


def test_the_true_maps_come_back_from_prediction(run, source):
    network = workdirs.load(run)
    assert network.shape == "fov"
    network = dataclasses.replace(
        network,
        image_size=128,
        networks=((lambda variables, batch: (oracle(batch), {}), None),),
    )
    paths = images.find_photographs(f"{source}/[0-9]*.png")
    named, tally = {path.stem: path for path in paths}, predict.Tally()
    predicted = predict.predict(network, named, lambda each: each, tally)
    found = {each.name: each for _, each in predicted}
    assert not tally.failures
    for i, eye in enumerate(EYES):
        prediction = found[str(i)].prediction
        assert prediction.size == eye.picture.shape[:2]
        for task, true in (("disc", eye.disc), ("cup", eye.cup)):
            mask = prediction.found[task]
            assert mask.shape == true.shape
            overlap = 2 * (true & (mask > 0)).sum() / (true.sum() + mask.sum())
            assert overlap > 0.95
        np.testing.assert_allclose(prediction.found["fovea"], eye.fovea_xy, atol=0.3)


def test_a_run_from_photographs_to_results(run, source, tmp_path):
    """With a network that has learnt nothing; what it says is computed anew."""
    output, metrics = evaluation.write(run, resolution="native")
    assert metrics["resolution"] == "native"
    assert len(list((output / "overlays").iterdir())) > 1
    failures, *_ = predictions.write(run, f"{source}/[0-9]*.png", tmp_path / "out")
    assert failures == []
    with (tmp_path / "out/predictions.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    with (output / "per_image.csv").open() as file:
        evaluated = {row["image_id"]: row for row in csv.DictReader(file)}
    assert set(evaluated) == {"8", "9", "10", "11"}
    network = workdirs.load(run)
    for name, scored in evaluated.items():
        eye = EYES[int(name)]
        left, top, right, bottom = np.rint(eye.box).astype(int)
        side = max(right - left, bottom - top)
        x = left - (side - (right - left)) / 2
        y = top - (side - (bottom - top)) / 2
        picture = Image.fromarray(eye.picture)
        seen = picture.transform(
            (side, side), Image.Transform.AFFINE, (1, 0, round(x), 0, 1, round(y))
        ).resize((32, 32), Image.Resampling.BILINEAR)
        logits, _ = network({"image": np.stack([np.asarray(seen)] * 4)})
        mass = 1 / (1 + np.exp(-logits["fovea"][0].astype(float)))
        ys, xs = (np.average(axis, weights=mass) for axis in np.indices((32, 32)))
        expected = (xs + 0.5) * side / 32 - 0.5 + x, (ys + 0.5) * side / 32 - 0.5 + y
        for row in (scored, rows[name]):
            at = float(row["fovea_x"]), float(row["fovea_y"])
            assert math.dist(at, expected) < 4
        # The evaluation sees the photograph as the prediction does.
        for key in ("fovea_x", "fovea_y", "probability"):
            wanted = pytest.approx(float(scored[key]), rel=1e-4, abs=0.01)
            assert float(rows[name][key]) == wanted


def test_a_network_is_not_evaluated_on_another_shape(run, build):
    _, stretched = build(image_size=32, shape="stretch")
    assert stretched == "fundus_folder/eyes-32px-stretch"
    with pytest.raises(UserError, match="'stretch', the network.*--shape=fov"):
        evaluation.write(run, dataset=stretched)
