"""New tasks and metrics with no other file touched, from the config to the page."""

import csv
import json
import math

import numpy as np
import pytest
import scipy.ndimage
from browser import Page
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtl_jax import configuration, metrics, tasks, workdirs
from mtl_jax.configuration import defaults
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.experiments import execution, plan
from mtl_jax.inference import scoring
from mtl_jax.reporting import evaluation, pictures, predictions, report, terminal
from mtl_jax.reporting.drawing import overlay

pytest_plugins = ("training_fixtures", "browser")

FIVE = ("glaucoma", "disc", "cup", "fovea", "rim")
PURPLE = (204, 121, 167)


@pytest.fixture(scope="module")
def rim():
    """The neuroretinal rim: the disc without the cup."""
    task = tasks.Task(
        "rim",
        "neuroretinal rim",
        "segmentation",
        labels=("disc", "cup"),
        target=lambda a: a["disc_mask"] * (1 - a["cup_mask"]),
        colour="purple",
    )
    tasks.register(task)
    yield task
    del tasks.TASKS["rim"]


@pytest.fixture
def others():
    """A second classification, and a point that is no annotation by itself."""

    def centre(annotations):
        mask = np.asarray(annotations["disc_mask"])
        ys, xs = np.indices(mask.shape[-2:])
        total = np.maximum(mask.sum((-1, -2)), 1)
        return np.stack([(mask * axis).sum((-1, -2)) / total for axis in (xs, ys)], -1)

    tasks.register(
        tasks.Task(
            "healthy",
            "health",
            "classification",
            labels=("glaucoma",),
            target=lambda a: 1 - a["glaucoma"],
        )
    )
    tasks.register(
        tasks.Task("centre", "disc centre", "localisation", ("disc",), centre, "orange")
    )
    yield
    del tasks.TASKS["healthy"], tasks.TASKS["centre"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "'rim' is taken"),
        ({"name": "x", "labels": ("disc", "vessels")}, "'vessels' is no annotation"),
        ({"name": "x", "colour": "pink"}, "'pink' is no colour"),
        ({"name": "x", "kind": "segmentaton"}, "'segmentaton' is no kind"),
        ({"name": "x", "labels": ()}, "'x' has no labels"),
        ({"name": "a/b"}, "'a/b' must be of small letters"),
        ({"name": ""}, "'' must be of small letters"),
        # Columns and folders that there are.
        ({"name": "probability"}, "'probability' is taken"),
        ({"name": "dice_disc"}, "'dice_disc' is taken"),
        ({"name": "vcdr_true"}, "'vcdr_true' is taken"),
        ({"name": "image_id"}, "'image_id' is taken"),
        ({"name": "crop"}, "'crop' is taken"),
    ],
)
def test_what_cannot_be_registered(rim, changes, message):
    fields = {"name": "rim", "title": "", "kind": "segmentation", "labels": ("disc",)}
    fields |= {"target": rim.target, "colour": "purple"} | changes
    with pytest.raises(ValueError, match=message):
        tasks.register(tasks.Task(**fields))
    assert list(tasks.TASKS) == [*FIVE]


def test_a_config_may_name_it_and_its_score(rim):
    config = defaults.get_config()
    assert config.tasks == FIVE[:4]
    config.evaluation.score = "dice_rim"
    with pytest.raises(UserError, match="'dice_rim', but rim is not among"):
        configuration.check(config)
    config.tasks = FIVE
    configuration.check(config)
    assert configuration.build(config).model.dense_heads == FIVE[1:]
    config.method.name = "single"
    parts = configuration.part_configs(config)
    assert tuple(parts) == FIVE
    assert {part.evaluation.score for part in parts.values()} == {"mean", "dice_rim"}
    config.tasks = ("disc", "vessels")
    with pytest.raises(UserError, match="config.tasks has 'vessels'.*fovea, rim"):
        configuration.check(config)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9))
def test_its_target_is_that_of_an_oracle_at_any_size(rim, seed, batch, side):
    rng = np.random.default_rng(seed)
    disc, cup = rng.integers(0, 2, (2, batch, side, side + 1), np.uint8)
    expected = (disc > 0) & ~(cup > 0)
    whole = rim.target({"disc_mask": disc, "cup_mask": cup})
    assert (np.asarray(whole) == expected).all()
    one = rim.target({"disc_mask": disc[0], "cup_mask": cup[0]})
    assert (np.asarray(one) == expected[0]).all()


def test_native_truth_is_the_target_of_native_masks(rim, folder_data):
    """Of photographs of several sizes; each lacks another annotation."""
    table = pipeline.open_split(pipeline.open_dataset(*folder_data), "test")
    batch = table.take(range(len(table)))
    for i, name in enumerate(table.image_ids()):
        truth = scoring.truth_of(batch, i)
        assert (truth["rim"] is None) == (name in ("eye5", "eye6"))
        found = scoring.native_truth(table, i, truth, "segmentation")
        if truth["rim"] is not None:
            masks = table.native(i, ["disc", "cup"])
            expected = (masks["disc_mask"] > 0) & (masks["cup_mask"] == 0)
            assert expected.any()
            assert expected.shape == table.details(i)["native_size"]
            np.testing.assert_array_equal(found["rim"], expected)


def test_it_is_drawn(rim):
    mask = np.zeros((600, 600), np.uint8)
    mask[200:400, 250:350] = 1
    picture = overlay.draw(np.full((600, 600, 3), 90, np.uint8), {"rim": mask}, {})
    is_purple = np.abs(picture.astype(int) - PURPLE).max(-1) < 20
    ys, xs = np.nonzero(is_purple[:600])
    assert (ys.min(), ys.max()) == pytest.approx((200, 400), abs=3)
    assert (xs.min(), xs.max()) == pytest.approx((250, 350), abs=3)
    # In the legend.
    assert is_purple[600:].any()


def knowing(batch):
    """A network that tells healthy eyes, and finds discs' centres one pixel off."""
    side = batch["image"].shape[1]
    ys, xs = np.mgrid[:side, :side]
    maps = []
    for mask in batch["disc_mask"]:
        y, x = (axis[mask > 0].mean() for axis in (ys, xs))
        distance = (xs - x - 1) ** 2 + (ys - y) ** 2
        probability = np.clip(np.exp(-distance / 4), 1e-9, 1 - 1e-9)
        maps.append(np.log(probability) - np.log1p(-probability))
    return {
        "glaucoma": np.zeros(len(maps)),
        "healthy": np.where(batch["glaucoma"] > 0, -2.0, 2.0),
        "centre": np.array(maps),
    }, {}


@pytest.mark.parametrize("resolution", ["model", "native"])
def test_other_kinds_are_scored_and_said(others, synthetic_data, tmp_path, resolution):
    table = pipeline.open_split(pipeline.open_dataset(*synthetic_data), "test")
    rows = scoring.score_split(knowing, table, 6, None, resolution)
    for i, (row, label) in enumerate(zip(rows, table.diagnoses(), strict=True)):
        assert (row["glaucoma"], row["healthy"]) == (label, 1 - label)
        expected = 1 / (1 + math.exp(2 if label else -2))
        assert row["probability_healthy"] == pytest.approx(expected)
        # The diagnosis is the glaucoma classifier's, and nobody else's.
        assert row["probability"] == row["probability_fc"] == 0.5
        assert row["centre_error"] == pytest.approx(1, abs=0.05)
        said = f"P(healthy) {expected:.2f} ({'no healthy' if label else 'healthy'}), "
        said += f"centre off by {row['centre_error_native']:.1f} px"
        assert pictures._caption(row).endswith(said)
        ys, xs = np.nonzero(table.native(i, ["disc"])["disc_mask"])
        native = row["centre_x"] - xs.mean(), row["centre_y"] - ys.mean()
        assert row["centre_error_native"] == pytest.approx(math.hypot(*native))
        assert pictures.quality(row, 32) == pytest.approx(
            np.mean([1 / (1 + math.exp(-2)), 0.5, 1 - row["centre_error"] / 32])
        )
    summary = scoring.summarize(rows)
    assert (summary["auc"], summary["auc_healthy"]) == (0.5, 1.0)
    assert summary["num_images"]["centre_error"] == 6
    run = {"dataset": "", "split": "", "resolution": "", "checkpoint": ""}
    run |= {"num_parameters": 1, "seconds_per_step": None}
    text = terminal.metrics_text(summary | run)
    assert f"AUC, health{'1.000':>36}  n = 6" in text
    assert "\ndisc centre error, model pixels " in text
    pictures.plot_roc(tmp_path / "roc.png", rows)
    assert (tmp_path / "roc.png").exists()


def test_a_new_metric_is_one_entry():
    bias = metrics.Metric(
        "vcdr_bias",
        "vCDR bias",
        places=("terminal", "model", "comparison"),
        columns=("vcdr", "vcdr_true"),
        reduce=lambda found, true: float(np.mean(found - true)) if len(true) else None,
    )
    metrics.register(bias)
    try:
        with pytest.raises(ValueError, match="'vcdr_bias' is taken"):
            metrics.register(bias)
        rows = [{"vcdr": 0.5, "vcdr_true": 0.75}, {"vcdr": 0.5, "vcdr_true": 0.5}, {}]
        summary = metrics.summarize(rows)
        assert summary["vcdr_bias"] == -0.125
        assert summary["num_images"]["vcdr_bias"] == 2
        assert [*metrics.at("model")][-1] == "vcdr_bias"
        assert "vcdr_bias" not in metrics.at("native")
    finally:
        metrics.METRICS.remove(bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "loss_disc"}, "'loss_disc' is taken"),
        ({"name": "num_images"}, "'num_images' is taken"),
        ({"heading": "vCDR error"}, "heading 'vCDR error' is taken"),
        ({"places": ("validation",)}, "'x' can have no part in the validation score"),
        (
            {"places": ("validation",), "better": "lower"},
            "'x' can have no part in the validation score",
        ),
    ],
)
def test_metrics_that_cannot_be_registered(changes, message):
    with pytest.raises(ValueError, match=message):
        metrics.register(metrics.Metric(**({"name": "x", "heading": "X"} | changes)))
    assert "x" not in metrics.every()


def component(mask):
    labels, count = scipy.ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    return labels == 1 + np.argmax(sizes) if count else mask


def by_hand(logits, size):
    """The rim from its logits [H, W]: enlarged, from one half on, the largest part."""
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    enlarged = Image.fromarray(probability).resize(size[::-1], Image.BILINEAR)
    return component(np.asarray(enlarged) >= 0.5)


@pytest.fixture(scope="module")
def experiment(rim, make_config, complete_data, tmp_path_factory):
    """Its folder and its run's: trained, and evaluated at both resolutions."""
    directory = tmp_path_factory.mktemp("rims")
    data_dir, dataset = complete_data
    fields = {"data.data_dir": data_dir, "data.dataset": dataset}
    config = make_config(fields, tasks=FIVE, num_epochs=40, validate_every=20)
    runs = plan.repeats(config, ["independent"], 1)
    assert execution.execute(directory, "repeats", config, runs) == 0
    return directory, directory / "runs" / runs[0].name


@pytest.mark.slow
def test_it_is_trained_and_validated(experiment):
    _, workdir = experiment
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    losses = [line["train/loss_rim"] for line in logged if "train/loss_rim" in line]
    assert losses[-1] < losses[0]
    dice = [
        line["validation/dice_rim"] for line in logged if "validation/score" in line
    ]
    assert len(dice) == 2
    assert 0 < max(dice) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("resolution", ["model", "native"])
def test_its_dice_is_that_of_an_oracle(experiment, complete_data, resolution):
    _, workdir = experiment
    folder, found = evaluation.write(workdir, resolution=resolution)
    with (folder / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    network = workdirs.load(workdir)
    table = pipeline.open_split(pipeline.open_dataset(*complete_data), "test")
    values = []
    for i, row in enumerate(rows):
        batch = table.take([i] * network.batch_size)
        disc, cup = batch["disc_mask"][0], batch["cup_mask"][0]
        if resolution == "native":
            disc, cup = (table.native(i, [n])[f"{n}_mask"] for n in ("disc", "cup"))
        truth = (disc > 0) & (cup == 0)
        mask = by_hand(network(batch)[0]["rim"][0], truth.shape)
        values.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        assert float(row["dice_rim"]) == pytest.approx(values[-1], abs=1e-6)
    assert found["dice_rim"] == pytest.approx(np.mean(values))
    assert found["dice_rim"] > 0.1
    assert "neuroretinal rim Dice" in terminal.metrics_text(found)
    with Image.open(folder / "overlays" / "best_1.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    is_purple = np.abs(pixels - PURPLE).max(-1) < 20
    # On the photograph and in the legend.
    assert is_purple[:400].any()
    assert is_purple[500:].any()


@pytest.mark.slow
def test_it_is_predicted(experiment, shared_dir, tmp_path):
    _, workdir = experiment
    photographs = shared_dir / "complete" / "p1*.png"
    failures, *_ = predictions.write(workdir, str(photographs), tmp_path / "out")
    assert failures == []
    network = workdirs.load(workdir)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        with Image.open(row["file"]) as image:
            small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
            size = image.size[::-1]
        logits, _ = network({"image": np.stack([small] * network.batch_size)})
        expected = by_hand(logits["rim"][0], size)
        with Image.open(tmp_path / "out" / row["rim_mask"]) as image:
            np.testing.assert_array_equal(np.asarray(image), 255 * expected)
        assert row["rim_mask"] == f"rim_masks/{row['image']}.png"
        assert int(row["rim_area"]) == expected.sum()
        assert int(row["rim_height"]) == expected.sum(0).max()
        # The mask with REFUGE's grey values knows nothing of it.
        with Image.open(tmp_path / "out" / row["mask"]) as image:
            assert set(np.unique(image)) <= {0, 128, 255}


@pytest.fixture(scope="module")
def reported(experiment):
    directory, workdir = experiment
    output, missing = report.write(directory)
    assert missing is None
    return output, workdir / "evaluation" / "test-model" / "per_image.csv"


@pytest.mark.slow
def test_it_is_in_tables_and_on_the_page(reported):
    output, numbers = reported
    head, _, body = (output / "table-model.md").read_text().splitlines()
    cells = dict(zip(head.split(" | "), body.split(" | "), strict=True))
    with numbers.open(newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    mean = 100 * np.mean([float(row["dice_rim"]) for row in rows.values()])
    assert cells["rim Dice, %"] == f"{mean:.2f} (1)"
    text = (output / "report.html").read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    column = [metric["key"] for metric in data["metrics"]].index("dice_rim")
    assert data["metrics"][column]["name"] == "rim Dice"
    (run,) = data["runs"]
    for photograph, reading in zip(data["photographs"], run["readings"], strict=True):
        found = float(rows[photograph["id"]]["dice_rim"])
        assert reading["numbers"][column] == pytest.approx(found)
        assert photograph["marks"]["rim"].startswith("M")
        # A broken rim may have no outline.
        assert not found or reading["marks"]["rim"].startswith("M")


@pytest.mark.slow
def test_a_browser_draws_it(browser, reported):
    shown = Page(browser, reported[0] / "report.html")
    shown.draw_all()
    for place in ("#cards .ink", "#controls .legend"):
        path = shown.find(f"{place} [data-mark=rim]")
        assert path.value_of_css_property("stroke") == f"rgb{PURPLE}"
    assert shown.outline("#cards .ink [data-mark=true-rim]").any()
    legend = shown.find("#controls .legend").text
    assert "disc, cup and rim" in legend
    shown.choose("sort", "left:dice_rim")
    numbers = shown.numbers("#cards", "left").values()
    values = [float(cells["dice_rim"][0]) for cells in numbers]
    assert values == sorted(values)
    assert len(values) > 1
