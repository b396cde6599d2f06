import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.calibration import calibration_curve

from mtl_jax import metrics

# The machines that run this are shared, so that no example has a time limit.
FAST = settings(deadline=None, max_examples=50)

# Few distinct scores, so that ties are common.
SCORED = st.lists(
    st.tuples(st.integers(0, 8).map(lambda i: i / 8), st.sampled_from([0, 1])),
    min_size=2,
    max_size=30,
)
MASK_PAIRS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.bool_, shape)] * 2)
)
REFUGE = (np.arange(400) < 40).astype(int)


def unzip(scored):
    scores, labels = zip(*scored, strict=True)
    assume(len(set(labels)) == 2)
    return list(scores), list(labels)


def split(scores, labels):
    positive = [s for s, label in zip(scores, labels, strict=True) if label]
    negative = [s for s, label in zip(scores, labels, strict=True) if not label]
    return positive, negative


@FAST
@given(MASK_PAIRS)
def test_dice_is_set_overlap(pair):
    a, b = ({tuple(pixel) for pixel in np.argwhere(mask)} for mask in pair)
    expected = 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0
    assert metrics.dice(*pair) == pytest.approx(expected, abs=1e-12)
    as_files = [255 * mask.astype(np.uint8) for mask in pair]
    assert metrics.dice(*as_files) == pytest.approx(expected, abs=1e-12)


def test_dice_of_empty_masks():
    empty, full = np.zeros((3, 3)), np.ones((3, 3))
    assert metrics.dice(empty, empty) == 1.0
    assert metrics.dice(empty, full) == 0.0
    assert metrics.dice(full, empty) == 0.0


def test_dice_refuses_to_broadcast():
    with pytest.raises(ValueError, match="shape"):
        metrics.dice(np.ones((4, 4)), np.ones((1, 4)))


@FAST
@given(SCORED)
def test_auc_counts_pairs(scored):
    scores, labels = unzip(scored)
    positive, negative = split(scores, labels)
    wins = sum((p > n) + Fraction(p == n, 2) for p in positive for n in negative)
    expected = float(wins / (len(positive) * len(negative)))
    assert metrics.auc(scores, labels) == pytest.approx(expected, abs=1e-12)


@FAST
@given(SCORED)
def test_roc_is_a_monotone_curve_with_the_auc_below_it(scored):
    scores, labels = unzip(scored)
    fpr, tpr = metrics.roc(scores, labels)
    assert (fpr[0], tpr[0]) == (0, 0)
    assert (fpr[-1], tpr[-1]) == (1, 1)
    assert np.all(np.diff(fpr) >= 0)
    assert np.all(np.diff(tpr) >= 0)
    area = np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)
    assert area == pytest.approx(metrics.auc(scores, labels), abs=1e-12)


@pytest.mark.parametrize("labels", [[], [0], [1, 1, 1], [0.0, 0.0]])
def test_one_class_has_no_curve(labels):
    scores = np.linspace(0, 1, len(labels))
    assert metrics.auc(scores, labels) is None
    assert metrics.sensitivity_at_specificity(scores, labels) is None
    with pytest.raises(ValueError, match="both classes"):
        metrics.roc(scores, labels)


@FAST
@given(SCORED, st.booleans())
def test_calibration_error_against_scikit_learn(scored, is_distinct):
    scores, labels = map(list, zip(*scored, strict=True))
    if is_distinct:
        scores = np.random.default_rng(len(scores)).permutation(len(scores))
        scores = (scores + 0.5) / len(scores)
    num_bins = min(10, max(1, len(scores) // 5))
    share, probability = calibration_curve(
        labels, scores, n_bins=num_bins, strategy="quantile"
    )
    found = metrics.reliability(scores, labels)
    assert found.share == pytest.approx(share)
    assert found.probability == pytest.approx(probability)
    assert found.count.sum() == len(scores)
    expected = np.sum(found.count * abs(share - probability)) / len(scores)
    assert metrics.calibration_error(scores, labels) == pytest.approx(expected)


@given(st.integers(50, 300), st.integers(0, 100))
def test_bins_are_of_equal_numbers(count, seed):
    scores = np.random.default_rng(seed).uniform(size=count)
    found = metrics.reliability(scores, np.zeros(count))
    assert len(found.count) == 10
    assert np.ptp(found.count) <= 1
    # Class 1 never occurs: the error is the probability.
    error = metrics.calibration_error(scores, np.zeros(count))
    assert error == pytest.approx(scores.mean())


@FAST
@given(SCORED)
def test_shares_of_diagnoses(scored):
    diagnoses = [int(score >= 0.5) for score, _ in scored]
    labels = [label for _, label in scored]
    positive, negative = split(diagnoses, labels)
    found = metrics.sensitivity(diagnoses, labels)
    assert found == (pytest.approx(np.mean(positive)) if positive else None)
    found = metrics.specificity(diagnoses, labels)
    assert found == (pytest.approx(1 - np.mean(negative)) if negative else None)


def sensitivity_by_hand(scores, labels, specificity):
    """Thresholds one by one; exact rates; two neighbours and a straight line."""
    positive, negative = split(scores, labels)
    best = {Fraction(0): Fraction(0)}
    for threshold in set(scores):
        fpr = Fraction(sum(n >= threshold for n in negative), len(negative))
        tpr = Fraction(sum(p >= threshold for p in positive), len(positive))
        best[fpr] = max(best.get(fpr, Fraction(0)), tpr)
    wanted = 1 - specificity
    below = max(f for f in best if f <= wanted)
    above = min(f for f in best if f >= wanted)
    if below == above:
        return float(best[below])
    share = (wanted - below) / (above - below)
    return float(best[below] + share * (best[above] - best[below]))


@FAST
@given(SCORED, st.integers(0, 20))
def test_sensitivity_at_specificity_is_the_straightforward_reading(scored, twentieths):
    scores, labels = unzip(scored)
    specificity = Fraction(twentieths, 20)
    expected = sensitivity_by_hand(scores, labels, specificity)
    found = metrics.sensitivity_at_specificity(scores, labels, float(specificity))
    assert found == pytest.approx(expected, abs=1e-9)


@FAST
@given(st.integers(0, 10**6), st.floats(0, 3))
def test_sensitivity_on_a_set_of_the_challenges_size(seed, shift):
    scores = np.random.default_rng(seed).normal(shift * REFUGE)
    # 15 % of 360 healthy images are 54: the threshold that lets through just these.
    threshold = np.sort(scores[REFUGE == 0])[-54]
    above_next = np.sort(scores[REFUGE == 0])[-55]
    best = np.mean(scores[REFUGE == 1] > above_next)
    assert best >= np.mean(scores[REFUGE == 1] >= threshold)
    found = metrics.sensitivity_at_specificity(scores, REFUGE)
    assert found == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 1.0),  # perfect
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 0.0),  # reversed; (0, 0) to (0.5, 0)
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0], 0.15),  # one tie: the diagonal
        # (0, 0.5) by the first positive, then a tie leads to (0.5, 1).
        ([0.9, 0.6, 0.6, 0.1], [1, 1, 0, 0], 0.5 + 0.5 * 0.15 / 0.5),
    ],
)
def test_sensitivity_at_85_by_hand(scores, labels, expected):
    found = metrics.sensitivity_at_specificity(scores, labels)
    assert found == pytest.approx(expected, abs=1e-12)


def test_perfect_classifier_of_the_challenges_size():
    assert metrics.sensitivity_at_specificity(REFUGE + 0.0, REFUGE) == 1.0
    assert metrics.auc(REFUGE + 0.0, REFUGE) == 1.0


@FAST
@given(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 4))
def test_distance_of_points(numbers):
    a, b, c, d = numbers
    expected = math.sqrt((a - c) ** 2 + (b - d) ** 2)
    found = metrics.distance(np.array([a, b], np.float32), (c, d))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def rows():
    missing = dict.fromkeys(
        ("glaucoma", "probability", "probability_fc", "probability_vcdr", "vcdr")
        + ("vcdr_true", "dice_disc", "dice_cup", "fovea_x", "fovea_y", "fovea_error")
        + ("fovea_error_native",)
    )
    full = {"dice_disc": 0.9, "dice_cup": 0.8, "vcdr": 0.5, "vcdr_true": 0.4}
    return [
        {**missing, **full, "image_id": "a", "glaucoma": 1, "probability": 0.7}
        | {"diagnosis": 1}
        | {"probability_fc": 0.9, "probability_vcdr": 0.3, "fovea_error": 3.0}
        | {"fovea_found": 1},
        {**missing, **full, "image_id": "b", "glaucoma": 0, "probability": 0.4}
        | {"diagnosis": 0}
        | {"probability_fc": 0.2, "probability_vcdr": 0.6, "vcdr_true": 0.8}
        # Found, but not annotated.
        | {"fovea_found": 1},
        # Not diagnosed: its scores must not count.
        {**missing, "image_id": "c", "probability": 0.0, "probability_fc": 0.0}
        | {"fovea_error": 5.0, "fovea_error_native": np.float32(40), "vcdr": 0.9}
        | {"fovea_found": 0},
        # Diagnosed, but without a vCDR to score by.
        {**missing, "image_id": "d", "glaucoma": 1, "probability": 0.1}
        | {"diagnosis": 0}
        | {"probability_fc": 0.1, "dice_disc": 0.0},
    ]


def test_summarize_by_hand():
    summary = metrics.summarize(rows())
    num_images = summary.pop("num_images")
    assert summary == pytest.approx(
        {
            "auc": 0.5,
            "auc_fc": 0.5,
            "auc_vcdr": 0.0,
            "sensitivity_at_85_specificity": 0.5 + 0.15 * 0.5,
            "sensitivity": 0.5,
            "specificity": 1.0,
            # Few images have one bin: the distance of the means.
            "calibration_error": 2 / 3 - 1.2 / 3,
            "calibration_error_fc": 2 / 3 - 1.2 / 3,
            "calibration_error_vcdr": 0.5 - 0.45,
            "dice_disc": 0.6,
            "dice_cup": 0.8,
            "vcdr_mae": 0.2,
            "fovea_error": 4.0,
            "fovea_error_native": 40.0,
            "fovea_found": 0.5,
        }
    )
    assert num_images == {
        "auc": 3,
        "auc_fc": 3,
        "auc_vcdr": 2,
        "sensitivity_at_85_specificity": 3,
        "sensitivity": 3,
        "specificity": 3,
        "calibration_error": 3,
        "calibration_error_fc": 3,
        "calibration_error_vcdr": 2,
        "dice_disc": 3,
        "dice_cup": 2,
        "vcdr_mae": 2,
        "fovea_error": 2,
        "fovea_error_native": 1,
        "fovea_found": 2,
    }
    json.dumps(summary | num_images, allow_nan=False)


def test_summarize_without_labels_is_none_everywhere():
    unlabelled = [{"image_id": "x", "probability": 0.3, "vcdr": 0.5, "glaucoma": None}]
    for nothing in ([], unlabelled):
        summary = metrics.summarize(nothing)
        num_images = summary.pop("num_images")
        assert set(summary) == set(num_images)
        assert all(value is None for value in summary.values())
        assert not any(num_images.values())


def test_summarize_of_one_class_says_how_many_images():
    summary = metrics.summarize([{"glaucoma": 0, "probability": p} for p in (0.1, 0.9)])
    assert summary["auc"] is None
    assert summary["sensitivity_at_85_specificity"] is None
    assert summary["num_images"]["auc"] == 2


def test_validation_score():
    summary = {"auc": 0.9, "dice_disc": 0.8, "dice_cup": 0.7, "fovea_error": 6.4}
    assert metrics.validation_score(summary, 64) == pytest.approx(3.3 / 4)
    without = {**summary, "auc": None, "fovea_error": None}
    assert metrics.validation_score(without, 64) == pytest.approx(0.75)
    assert metrics.validation_score({"fovea_error": 0.0}, 64) == 1.0
    assert metrics.validation_score(dict.fromkeys(summary), 64) is None


def rows_of(seed, count=40):
    """Rows in which every fifth lacks a mask; about a third are glaucomas."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = int(rng.random() < 0.35)
        rows.append(
            {
                "glaucoma": label,
                # Few values, so that there are ties.
                "probability": round(rng.random() * 0.7 + 0.3 * label, 1),
                "dice_disc": None if i % 5 == 0 else rng.beta(8, 2),
                "vcdr": rng.random(),
                "vcdr_true": rng.random(),
            }
        )
    return rows


def share_of_wins(label, score):
    difference = score[label == 1][:, None] - score[label == 0]
    return (np.sign(difference) / 2 + 0.5).mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_are_scipys(seed):
    """From other random numbers: the ends differ by the noise of 1000 resamples."""
    rows = rows_of(seed)
    found = metrics.intervals(rows)
    assert found == metrics.intervals(rows)
    disc = [row["dice_disc"] for row in rows if row["dice_disc"] is not None]
    label, score, *ratios = (
        np.array([row[key] for row in rows])
        for key in ("glaucoma", "probability", "vcdr", "vcdr_true")
    )
    for name, data, statistic in (
        ("dice_disc", (disc,), np.mean),
        ("vcdr_mae", ratios, lambda one, other: abs(one - other).mean()),
        ("auc", (label, score), share_of_wins),
    ):
        expected = stats.bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=2000,
            method="percentile",
            rng=7,
        )
        ends = expected.confidence_interval
        noise = 0.4 * expected.standard_error
        np.testing.assert_allclose(found[name], (ends.low, ends.high), atol=noise)
        assert found[name][0] < metrics.summarize(rows)[name] < found[name][1]


def test_what_has_no_interval():
    one = {"dice_disc": 0.5, "glaucoma": 1, "probability": 0.2}
    assert metrics.intervals([]) == {}
    assert metrics.intervals([one]) == {}
    # Two glaucomas have a mean Dice, but no AUC.
    found = metrics.intervals([one, one])
    assert found["dice_disc"] == [0.5, 0.5]
    assert "auc" not in found
    # Half of the resamples of two eyes are of one class; the others rank them right.
    healthy = {"glaucoma": 0, "probability": 0.1}
    found = metrics.intervals([one, healthy])
    assert found["auc"] == [1.0, 1.0]
    assert "dice_disc" not in found
