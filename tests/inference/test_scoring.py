import copy
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mtl_jax.data import geometry, pipeline
from mtl_jax.inference import scoring
from mtl_jax.inference.prediction import Prediction
from mtl_jax.inference.vcdr import VcdrClassifier

pytest_plugins = ("training_fixtures",)

# Rises steeply at a ratio of one half.
CLASSIFIER = VcdrClassifier(coefficient=20.0, intercept=-10.0, prior=0.1)


@pytest.fixture(scope="module")
def table(synthetic_data):
    return pipeline.open_split(pipeline.open_dataset(*synthetic_data), "test")


@pytest.fixture(scope="module")
def partial_table(folder_data):
    return pipeline.open_split(pipeline.open_dataset(*folder_data), "test")


def heatmap(xy, size, sigma=1.5):
    """Logits whose probabilities are a Gaussian at each point."""
    ys, xs = np.mgrid[:size, :size]
    distance = (xs - xy[:, 0, None, None]) ** 2 + (ys - xy[:, 1, None, None]) ** 2
    probability = np.clip(np.exp(-0.5 * distance / sigma**2), 1e-9, 1 - 1e-9)
    return np.log(probability) - np.log1p(-probability)


def knowing(batch, shift=0):
    """A network that knows the truth; masks come out `shift` pixels to the right."""

    def mask_logits(mask):
        return np.where(np.roll(mask, shift, axis=2) > 0, 20.0, -20.0)

    logits = {
        "glaucoma": np.where(batch["glaucoma"] > 0, 4.0, -4.0),
        "disc": mask_logits(batch["disc_mask"]),
        "cup": mask_logits(batch["cup_mask"]),
        "fovea": heatmap(batch["fovea_xy"] + shift, batch["image"].shape[1]),
    }
    return logits, {"disc": np.arange(len(batch["glaucoma"]), dtype=np.float32)}


@pytest.mark.parametrize("resolution", ["model", "native"])
@pytest.mark.parametrize("batch_size", [4, 6])
def test_perfect_predictions(table, resolution, batch_size):
    rows = scoring.score_split(knowing, table, batch_size, CLASSIFIER, resolution)
    assert [row["image_id"] for row in rows] == [
        table.details(i)["image_id"] for i in range(6)
    ]
    for row in rows:
        assert row["dice_disc"] == row["dice_cup"] == 1.0
        assert row["vcdr"] == row["vcdr_true"]
        assert row["fovea_error"] < 0.1
        probability = 1 / (1 + math.exp(-4 if row["glaucoma"] else 4))
        assert row["probability_fc"] == pytest.approx(probability)
        from_ratio = 1 / (1 + math.exp(10 - 20 * row["vcdr"]))
        assert row["probability_vcdr"] == pytest.approx(from_ratio)
        assert row["probability"] == pytest.approx((probability + from_ratio) / 2)
    summary = scoring.summarize(rows)
    assert summary["dice_disc"] == summary["dice_cup"] == summary["auc_fc"] == 1.0
    assert summary["vcdr_mae"] == 0.0
    assert summary["fovea_error"] < 0.1
    assert summary["num_images"]["fovea_error"] == 6


def test_losses_are_those_of_the_image(table):
    rows = scoring.score_split(knowing, table, 4, None)
    assert [row["loss_disc"] for row in rows] == [0, 1, 2, 3, 0, 1]
    summary = scoring.summarize(rows)
    assert summary["loss_disc"] == pytest.approx(7 / 6)
    assert summary["num_images"]["loss_disc"] == 6
    assert "loss_cup" not in summary
    assert all(row["probability_vcdr"] is None for row in rows)


def test_predictions_off_by_two_pixels(table):
    rows = scoring.score_split(lambda batch: knowing(batch, 2), table, 6, None)
    masks = table.take(range(6))["disc_mask"].astype(bool)
    for row, mask in zip(rows, masks, strict=True):
        both = (mask[:, 2:] & mask[:, :-2]).sum()
        assert row["dice_disc"] == pytest.approx(2 * both / (2 * mask.sum()))
        assert row["vcdr"] == row["vcdr_true"]
        assert row["fovea_error"] == pytest.approx(math.hypot(2, 2), abs=0.1)


def test_missing_labels_are_not_scored(partial_table):
    rows = scoring.score_split(knowing, partial_table, 4, CLASSIFIER, "native")
    by_number = {int(row["image_id"].removeprefix("eye")): row for row in rows}
    assert sorted(by_number) == [5, 6, 7, 8, 9, 10]
    for i, row in by_number.items():
        assert (row["dice_disc"] is None) == (i == 5)
        assert ("loss_disc" in row) == (i != 5)
        assert (row["dice_cup"] is None) == (i == 6)
        assert (row["vcdr_true"] is None) == (i in (5, 6))
        assert (row["fovea_error"] is None) == (i == 7)
        assert (row["fovea_error_native"] is None) == (i == 7)
        assert row["glaucoma"] == (None if i == 8 else i % 2)
        # What is predicted is there nevertheless.
        assert None not in (row["vcdr"], row["fovea_x"], row["probability"])
    counts = scoring.summarize(rows)["num_images"]
    assert counts["dice_disc"] == counts["dice_cup"] == counts["fovea_error"] == 5
    assert (counts["vcdr_mae"], counts["auc"], counts["loss_disc"]) == (4, 5, 5)


def test_fovea_in_the_photographs_own_pixels(partial_table):
    """Annotated at (20 + i + 1/4, 30.5) in photographs of three sizes."""
    rows = scoring.score_split(knowing, partial_table, 6, None, "native")
    for row in rows:
        i = int(row["image_id"].removeprefix("eye"))
        if i != 7:
            assert row["fovea_x"] == pytest.approx(20.25 + i, abs=0.3)
            assert row["fovea_y"] == pytest.approx(30.5, abs=0.3)
            assert row["fovea_error_native"] < 0.4


def rectangle(size, rows, columns):
    mask = np.zeros(size, np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


def test_one_image_by_hand():
    """A model image of 32 x 32 from a photograph 64 wide and 128 high."""
    truth = {
        "glaucoma": 1,
        "disc": rectangle((32, 32), (5, 15), (5, 15)),
        "cup": rectangle((32, 32), (8, 12), (8, 12)),
        "fovea": np.array([10.0, 10.0]),
    }
    prediction = Prediction(
        size=(32, 32),
        found={
            "glaucoma": 0.75,
            "disc": rectangle((32, 32), (5, 15), (8, 18)),
            "cup": rectangle((32, 32), (8, 13), (8, 12)),
            "fovea": np.array([13.0, 14.0]),
        },
        vcdr=0.5,
        probability=0.75,
    )
    details = {"image_id": "eye", "frame": geometry.whole((128, 64))}
    model = geometry.whole((32, 32))
    # (10 + 1/2) * 2 - 1/2 and (10 + 1/2) * 4 - 1/2.
    native = {"fovea": np.array([20.5, 41.5])}
    row = scoring.score_case(
        scoring.Case(
            0, details, (32, 32), model, prediction, truth, native, {"disc": 0.5}
        )
    )
    assert row["loss_disc"] == 0.5
    assert row["dice_disc"] == pytest.approx(0.7)
    assert row["dice_cup"] == pytest.approx(2 * 16 / 36)
    assert row["vcdr_true"] == pytest.approx(0.4)
    assert row["fovea_error"] == pytest.approx(5.0)
    assert (row["fovea_x"], row["fovea_y"]) == (26.5, 57.5)
    assert row["fovea_error_native"] == pytest.approx(math.hypot(6, 16))
    assert scoring.summarize([row])["vcdr_mae"] == pytest.approx(0.1)


def test_a_fovea_that_is_not_reported_counts_as_not_found():
    """Its error stays, so that fewer foveas do not make the mean smaller."""
    frame = geometry.whole((32, 32))
    truth = {**dict.fromkeys(("glaucoma", "disc", "cup")), "fovea": np.zeros(2)}
    details = {"image_id": "eye", "frame": frame}

    def score(prediction, truth):
        native = {"fovea": truth["fovea"]}
        case = scoring.Case(0, details, (32, 32), frame, prediction, truth, native, {})
        return scoring.score_case(case)

    near, far = np.array([3.0, 4.0]), np.array([9.0, 12.0])
    reported = Prediction((32, 32), found={"fovea": near})
    hidden = Prediction((32, 32), found={"fovea": None}, unreported={"fovea": far})
    unknown = {**truth, "fovea": None}
    rows = [score(reported, truth), score(hidden, truth), score(hidden, unknown)]
    assert [row["fovea_found"] for row in rows] == [1, 0, 0]
    assert [row["fovea_x"] for row in rows] == [3.0, None, None]
    assert [row["fovea_error"] for row in rows] == [5.0, 15.0, None]
    assert [row["fovea_error_native"] for row in rows] == [5.0, 15.0, None]
    summary = scoring.summarize(rows)
    assert summary["fovea_error"] == 10.0
    assert summary["fovea_found"] == 0.5
    assert summary["num_images"]["fovea_found"] == 2


def test_limits_follow_the_shape(table, partial_table):
    """Drawn fundi of a round field; a network sees foveas in the upper left corner."""

    def cornered(batch):
        logits, losses = knowing(batch)
        count, size = batch["image"].shape[:2]
        return {**logits, "fovea": heatmap(np.zeros((count, 2)), size, 0.5)}, losses

    for split in (table, partial_table):
        assert split.shape == "stretch"
        rows = scoring.score_split(cornered, split, 6, None)
        assert [row["fovea_found"] for row in rows] == [1] * 6
    table = copy.copy(table)
    table.shape = "fov"
    rows = scoring.score_split(cornered, table, 6, None)
    assert [row["fovea_found"] for row in rows] == [0] * 6
    assert all(row["fovea_x"] is None and row["fovea_error"] > 5 for row in rows)
    rows = scoring.score_split(knowing, table, 6, None)
    assert [row["fovea_found"] for row in rows] == [1] * 6


def test_no_tasks_no_scores():
    nothing = dict.fromkeys(("glaucoma", "disc", "cup", "fovea"))
    frame = geometry.whole((8, 8))
    details = {"image_id": "eye", "frame": frame}
    row = scoring.score_case(
        scoring.Case(0, details, (8, 8), frame, Prediction((8, 8)), nothing, {}, {})
    )
    assert row.pop("image_id") == "eye"
    assert set(row.values()) == {None}


def test_truth_is_none_where_not_annotated(table):
    batch = table.take([0, 1])
    for labelled in np.ndindex(2, 2, 2, 2):
        batch["has_label"] = np.array([labelled, (1, 1, 1, 1)], bool)
        truth = scoring.truth_of(batch, 0)
        assert [truth[name] is not None for name in scoring.LABELS] == list(
            map(bool, labelled)
        )
        whole = scoring.truth_of(batch, 1)
        assert whole["glaucoma"] == batch["glaucoma"][1]
        assert (whole["disc"] == batch["disc_mask"][1]).all()
        assert (whole["cup"] == batch["cup_mask"][1]).all()
        assert (whole["fovea"] == batch["fovea_xy"][1]).all()


SUMMARY = {
    "auc": 0.9,
    "dice_disc": 0.8,
    "dice_cup": 0.6,
    "fovea_error": 8.0,
    "loss_disc": 0.25,
    "loss_fovea": 0.5,
}


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("mean", (0.9 + 0.8 + 0.6 + 0.75) / 4),
        ("auc", 0.9),
        ("dice_disc", 0.8),
        ("dice_cup", 0.6),
        ("fovea_error", -8.0),
        ("loss", -0.75),
    ],
)
def test_score_is_larger_for_better(name, score):
    assert scoring.score_of(SUMMARY, name, 32) == pytest.approx(score)


def test_score_of_what_is_there():
    empty = dict.fromkeys(("auc", "dice_disc", "dice_cup", "fovea_error"))
    for name in ("mean", "auc", "dice_disc", "fovea_error", "loss"):
        assert scoring.score_of(empty, name, 32) is None
    some = {**empty, "dice_cup": 0.5, "fovea_error": 0.0}
    assert scoring.score_of(some, "mean", 32) == 0.75


def column_height(mask):
    return max(int(column.sum()) for column in mask.T)


@pytest.mark.parametrize("C", [1.0, 50.0])
def test_classifier_on_the_true_ratios(synthetic_data, C):
    table = pipeline.open_split(pipeline.open_dataset(*synthetic_data), "train")
    batch = table.take(range(len(table)))
    pairs = zip(batch["cup_mask"], batch["disc_mask"], strict=True)
    ratios = [[column_height(cup) / column_height(disc)] for cup, disc in pairs]
    reference = LogisticRegression(C=C).fit(ratios, batch["glaucoma"])
    for chunk in (5, 64):
        found = scoring.fit_vcdr_classifier(table, C, chunk=chunk)
        assert found.coefficient == pytest.approx(reference.coef_.item(), rel=1e-4)
        assert found.intercept == pytest.approx(reference.intercept_.item(), rel=1e-4)


def test_no_classifier_without_cups(folder_data):
    table = pipeline.open_split(pipeline.open_dataset(*folder_data), "train")
    assert scoring.fit_vcdr_classifier(table, 1.0) is None
