import math

import numpy as np
import pytest

from mtl_jax.data import geometry
from mtl_jax.data.field_of_view import FieldOfView
from mtl_jax.inference.postprocess import PostProcessing
from mtl_jax.inference.prediction import (
    Prediction,
    cup_to_disc_ratio,
    grey_mask,
    interpret,
    leave_out_hidden,
)
from mtl_jax.inference.vcdr import VcdrClassifier

CLASSIFIER = VcdrClassifier(coefficient=8.0, intercept=-3.0, prior=0.25)


def block(rows, columns, size=16):
    logits = np.full((size, size), -30.0)
    logits[slice(*rows), slice(*columns)] = 30.0
    return logits


LOGITS = {
    "glaucoma": np.float32(0.5),
    "disc": block((2, 12), (3, 13)),
    "cup": block((4, 9), (5, 10)),
    "fovea": block((10, 11), (14, 15)),
}


def test_everything_at_model_size():
    found = interpret(LOGITS, CLASSIFIER, geometry.whole((16, 16)))
    assert (found.found["disc"] == (LOGITS["disc"] > 0)).all()
    assert (found.found["cup"] == (LOGITS["cup"] > 0)).all()
    np.testing.assert_allclose(found.found["fovea"], (14, 10), atol=1e-6)
    assert found.vcdr == pytest.approx(0.5)
    assert found.probability_fc == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert found.probability_vcdr == pytest.approx(1 / (1 + math.exp(-1)))
    mean = (found.probability_fc + found.probability_vcdr) / 2
    assert found.probability == pytest.approx(mean)
    assert found.diagnosis is True


def test_masks_and_fovea_at_the_photographs_size():
    found = interpret(LOGITS, CLASSIFIER, geometry.whole((64, 32)))
    assert found.size == (64, 32)
    assert found.found["disc"].shape == found.found["cup"].shape == (64, 32)
    # Four times the height, twice the width; pixel centres are at whole numbers.
    np.testing.assert_allclose(found.found["fovea"], (28.5, 41.5), atol=1e-6)
    assert found.found["disc"].any(1).nonzero()[0].tolist() == list(range(8, 48))
    assert found.found["disc"].any(0).nonzero()[0].tolist() == list(range(6, 26))
    assert found.vcdr == pytest.approx(0.5)


def test_only_the_largest_component_counts():
    cup = LOGITS["cup"].copy()
    cup[:, 0] = 30.0
    cup[:3, 0] = -30.0
    whole = interpret({**LOGITS, "cup": cup}, CLASSIFIER, geometry.whole((16, 16)))
    assert (whole.found["cup"] == (LOGITS["cup"] > 0)).all()


IN_DISC = PostProcessing(cup="in_disc")
WHOLE = geometry.whole((16, 16))


def test_the_cup_is_in_the_disc():
    """A larger artefact at the border is left out; what of the cup is beyond stays."""
    true = np.maximum(LOGITS["cup"], block((9, 14), (5, 8)))
    artefact = block((0, 16), (13, 16))
    logits = {**LOGITS, "cup": np.maximum(true, artefact)}
    found = interpret(logits, CLASSIFIER, WHOLE, IN_DISC)
    assert (found.found["cup"] == (true > 0)).all()
    assert found.vcdr == pytest.approx(10 / 12)
    largest = interpret(logits, CLASSIFIER, WHOLE, PostProcessing())
    assert (largest.found["cup"] == (artefact > 0)).all()
    # At the photograph's size, too.
    native = interpret(logits, CLASSIFIER, geometry.whole((64, 48)), IN_DISC)
    assert native.found["cup"].shape == (64, 48)
    assert not native.found["cup"][:, 36:].any()


def test_no_cup_touches_the_disc():
    logits = {**LOGITS, "cup": block((13, 16), (0, 16))}
    found = interpret(logits, CLASSIFIER, WHOLE, IN_DISC)
    assert not found.found["cup"].any()
    assert found.vcdr == 0.0
    # Nor does any without a disc; then there is no ratio.
    logits = {**LOGITS, "disc": np.full((16, 16), -30.0)}
    found = interpret(logits, CLASSIFIER, WHOLE, IN_DISC)
    assert not found.found["cup"].any()
    assert found.vcdr is None
    # A network that does not look for discs keeps the largest.
    alone = interpret({"cup": LOGITS["cup"]}, CLASSIFIER, WHOLE, IN_DISC)
    assert (alone.found["cup"] == (LOGITS["cup"] > 0)).all()


FIELD = FieldOfView((2, 0, 16, 16), circle=(8.0, 8.0, 7.0))


@pytest.mark.parametrize(
    ("xy", "is_reported"),
    # In the circle, within a pixel of it, beyond it, in the disc, and beside the disc.
    [((3, 8), True), ((1, 8), True), ((0, 8), False), ((10, 5), False), ((4, 5), True)],
)
def test_a_fovea_that_is_not_shown_is_not_reported(xy, is_reported):
    x, y = xy
    logits = {
        **LOGITS,
        "disc": block((2, 9), (8, 14)),
        "fovea": block((y, y + 1), (x, x + 1)),
    }
    frame = geometry.Frame(10, -4, 64, 32, (50, 90))
    all_points = interpret(logits, CLASSIFIER, frame)
    prediction = leave_out_hidden(all_points, logits, frame, FIELD)
    at = all_points.found["fovea"]
    np.testing.assert_allclose(at, (10 + 4 * x + 1.5, -4 + 2 * y + 0.5), atol=1e-4)
    np.testing.assert_array_equal(prediction.point("fovea"), at)
    assert (prediction.found["fovea"] is not None) == is_reported
    assert ("fovea" in prediction.unreported) != is_reported
    for name in ("glaucoma", "disc", "cup"):
        np.testing.assert_array_equal(prediction.found[name], all_points.found[name])


@pytest.mark.parametrize(("peak", "is_reported"), [(0.21, True), (0.09, False)])
def test_a_map_without_a_peak_has_no_fovea(peak, is_reported):
    logits = {"fovea": np.full((16, 16), -9.0)}
    logits["fovea"][7, 6] = math.log(peak / (1 - peak))
    found = interpret(logits, None, WHOLE)
    prediction = leave_out_hidden(found, logits, WHOLE, FIELD)
    assert (prediction.found["fovea"] is not None) == is_reported
    # A network without that task has none to leave out.
    alone = interpret({"cup": LOGITS["cup"]}, None, WHOLE)
    assert leave_out_hidden(alone, {}, WHOLE, FIELD).point("fovea") is None


@pytest.mark.parametrize("left_out", ["glaucoma", "disc", "cup", "fovea"])
def test_a_task_less(left_out):
    logits = {name: value for name, value in LOGITS.items() if name != left_out}
    found = interpret(logits, CLASSIFIER, geometry.whole((16, 16)))
    assert set(found.found) == set(LOGITS) - {left_out}
    derived = ("probability_fc", "probability_vcdr", "probability", "vcdr")
    missing = {name for name in derived if getattr(found, name) is None}
    without_mask = {"vcdr", "probability_vcdr"}
    assert (
        missing
        == {
            "glaucoma": {"probability_fc"},
            "disc": without_mask,
            "cup": without_mask,
            "fovea": set(),
        }[left_out]
    )
    one = "probability_vcdr" if left_out == "glaucoma" else "probability_fc"
    if left_out != "fovea":
        assert found.probability == getattr(found, one)


def test_no_ratio_where_nothing_was_found():
    nothing = np.full((16, 16), -30.0)
    found = interpret(
        {**LOGITS, "disc": nothing, "cup": nothing},
        CLASSIFIER,
        geometry.whole((16, 16)),
    )
    assert not found.found["disc"].any()
    assert found.vcdr is None
    assert found.probability_vcdr == CLASSIFIER.prior
    mean = (found.probability_fc + CLASSIFIER.prior) / 2
    assert found.probability == pytest.approx(mean)
    alone = interpret(
        {"disc": nothing, "cup": nothing}, CLASSIFIER, geometry.whole((16, 16))
    )
    assert alone.probability == CLASSIFIER.prior
    unfitted = interpret(
        {**LOGITS, "disc": nothing, "cup": nothing}, None, geometry.whole((16, 16))
    )
    assert unfitted.vcdr is unfitted.probability_vcdr is None
    whole = interpret({**LOGITS, "cup": nothing}, CLASSIFIER, geometry.whole((16, 16)))
    assert whole.vcdr == 0.0
    whole = interpret({**LOGITS, "disc": nothing}, CLASSIFIER, geometry.whole((16, 16)))
    assert whole.vcdr == pytest.approx(1.0)


def test_neither_classifier():
    logits = {"disc": LOGITS["disc"], "cup": LOGITS["cup"]}
    found = interpret(logits, None, geometry.whole((16, 16)))
    assert found.vcdr == pytest.approx(0.5)
    assert found.probability is None
    assert found.diagnosis is None


@pytest.mark.parametrize(("logit", "diagnosis"), [(0.0, True), (-1e-3, False)])
def test_diagnosis_from_one_half(logit, diagnosis):
    found = interpret(
        {"glaucoma": np.float64(logit)}, CLASSIFIER, geometry.whole((16, 16))
    )
    assert found.diagnosis is diagnosis


def test_a_cup_beyond_the_disc_is_part_of_it():
    cup = LOGITS["cup"] > 0
    nothing = np.zeros_like(cup)
    assert cup_to_disc_ratio({"disc": nothing, "cup": cup}) == pytest.approx(1.0)
    assert cup_to_disc_ratio({"disc": nothing, "cup": nothing}) == 0.0
    assert cup_to_disc_ratio({"disc": cup, "cup": nothing}) == 0.0
    assert cup_to_disc_ratio({"disc": None, "cup": cup}) is None
    assert cup_to_disc_ratio({"disc": cup}) is None


def test_grey_values_of_overlapping_masks():
    disc = np.array([[1, 1, 0, 0]], np.uint8)
    cup = np.array([[0, 1, 1, 0]], np.uint8)
    size = (1, 4)
    for masks, wanted in (
        ({"disc": disc, "cup": cup}, [128, 0, 0, 255]),
        ({"disc": disc}, [128, 128, 255, 255]),
        ({"cup": cup}, [255, 0, 0, 255]),
    ):
        assert grey_mask(Prediction(size, masks)).tolist() == [wanted]
    assert grey_mask(Prediction(size)) is None
