"""Temperatures, weight and threshold against SciPy, scikit-learn and brute force."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_curve
from sklearn.metrics import log_loss as reference_log_loss

from mtl_jax.inference import calibration, vcdr
from mtl_jax.inference.prediction import Prediction

FAST = settings(deadline=None, max_examples=30)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def sample(seed, count=60, sharpness=1.0):
    """Probabilities whose logits are `sharpness` times those that they should be."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, count)
    labels = (rng.uniform(size=count) < sigmoid(logits)).astype(int)
    labels[:2] = 0, 1
    return sigmoid(sharpness * logits), labels


def platt(labels):
    """Each label's target, by his formula."""
    ones, zeros = sum(labels), len(labels) - sum(labels)
    return np.where(labels, (ones + 1) / (ones + 2), 1 / (zeros + 2))


@FAST
@given(st.integers(0, 10**6), st.integers(4, 200))
def test_log_loss_against_scikit_learn(seed, count):
    probability, labels = sample(seed, count)
    target = platt(labels)
    # A target between the classes is a mixture of both.
    expected = reference_log_loss(
        np.repeat([1, 0], count),
        np.tile(probability, 2),
        sample_weight=np.concatenate([target, 1 - target]),
        labels=[0, 1],
    )
    assert calibration.log_loss(probability, labels) == pytest.approx(expected)


@FAST
@given(st.integers(0, 10**6), st.floats(0.5, 4))
def test_temperature_against_another_optimizer(seed, sharpness):
    probability, labels = sample(seed, sharpness=sharpness)
    logits, target = np.log(probability / (1 - probability)), platt(labels)

    def loss(log_temperature):
        z = logits / np.exp(log_temperature)
        return np.mean(np.logaddexp(0, z) - target * z)

    reference = scipy.optimize.differential_evolution(
        lambda x: loss(x[0]), [tuple(np.log(calibration.TEMPERATURES))], seed=0
    )
    found = calibration.fit_temperature(probability, labels)
    assert loss(np.log(found)) == pytest.approx(reference.fun, abs=1e-7)
    assert np.log(found) == pytest.approx(reference.x[0], abs=1e-2)


@FAST
@given(st.integers(0, 10**6), st.floats(0.2, 5))
def test_temperature_undoes_a_factor_of_the_logits(seed, factor):
    probability, labels = sample(seed, 200)
    one = calibration.fit_temperature(probability, labels)
    scaled = calibration.scale(probability, 1 / factor)
    low, high = calibration.TEMPERATURES
    found = calibration.fit_temperature(scaled, labels)
    assert found == pytest.approx(np.clip(one * factor, low, high), rel=1e-2)


def test_many_photographs_give_back_the_temperature_that_was_drawn():
    probability, labels = sample(0, 20_000, sharpness=3)
    assert calibration.fit_temperature(probability, labels) == pytest.approx(3, rel=0.1)
    scaled = calibration.scale(probability, 3)
    assert brier_score_loss(labels, scaled) < brier_score_loss(labels, probability)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [1, 1, 0, 0]])
def test_few_separated_photographs_are_bounded(labels):
    low, high = calibration.TEMPERATURES
    found = calibration.fit_temperature([0.1, 0.2, 0.8, 0.9], labels)
    assert low <= found <= high
    # Without Platt's targets the first would be at the lower bound.
    assert found > 2 * low
    certain = calibration.fit_temperature([0.0, 0.0, 1.0, 1.0], labels)
    assert np.isfinite(certain)


@FAST
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_scaling_keeps_the_order_and_one_half(seed, temperature):
    probability, _ = sample(seed)
    scaled = calibration.scale(probability, temperature)
    assert (np.argsort(scaled) == np.argsort(probability)).all()
    assert ((scaled > 0.5) == (probability > 0.5)).all()
    assert calibration.scale(probability, 1) == pytest.approx(probability, abs=1e-11)
    # Beyond that, logits are bounded.
    known = abs(scaled - 0.5) < 0.5 - 1e-9
    back = calibration.scale(scaled, 1 / temperature)
    assert back[known] == pytest.approx(probability[known], abs=1e-3)


@FAST
@given(st.integers(0, 10**6))
def test_weight_against_all_weights(seed):
    fc, labels = sample(seed)
    other, _ = sample(seed + 1)
    found = calibration.fit_weight(fc, other, labels)
    losses = [
        calibration.log_loss(w * fc + (1 - w) * other, labels)
        for w in np.arange(0, 1.001, 0.05)
    ]
    best = 0.05 * np.argmin(losses)
    # The paired difference of both, photograph by photograph.
    gain = np.array(
        [
            calibration.log_losses((fc + other) / 2, labels)
            - calibration.log_losses(best * fc + (1 - best) * other, labels)
        ]
    )
    is_clear = gain.mean() > gain.std() / np.sqrt(gain.size)
    is_clear &= min(sum(labels), sum(1 - labels)) >= 20
    assert found == pytest.approx(best if is_clear else 0.5)
    # The better of both is not diluted by noise.
    assert calibration.fit_weight(fc, fc, labels) == 0.5
    fc, labels = sample(seed, count=200)
    noise = np.full_like(fc, 0.999)
    assert calibration.fit_weight(fc, noise, labels) > 0.5
    assert calibration.fit_weight(fc[:30], noise[:30], labels[:30]) == 0.5


@FAST
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from([0, 1])), min_size=2, max_size=30
    ),
    st.floats(0.01, 0.99),
)
def test_operating_point_against_roc_curve(scored, wished):
    scores, labels = map(np.array, zip(*[*scored, (3, 0), (5, 1)], strict=True))
    scores = scores / 8
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    threshold = calibration.operating_point(scores, labels, sensitivity=wished)
    found = scores >= threshold
    assert found[labels == 1].mean() == pytest.approx(true[true >= wished][0])
    assert found[labels == 0].mean() == pytest.approx(false[true >= wished][0])
    threshold = calibration.operating_point(scores, labels, specificity=wished)
    found = scores >= threshold
    reaching = 1 - false >= wished
    assert found[labels == 1].mean() == pytest.approx(true[reaching][-1])
    assert 1 - found[labels == 0].mean() >= wished
    assert calibration.operating_point(scores, labels) == 0.5


def test_operating_point_is_away_from_the_scores():
    scores = [0.1, 0.2, 0.4, 0.8]
    point = calibration.operating_point(scores, [0, 0, 1, 1], sensitivity=0.9)
    assert point == pytest.approx(0.3)
    one_above = np.nextafter(0.4, 1)
    point = calibration.operating_point([0.4, one_above], [0, 1], sensitivity=0.9)
    assert point == one_above
    # Nothing is positive where not even the highest score may be.
    point = calibration.operating_point([1.0, 0.5], [0, 1], specificity=0.9)
    assert point > 1.0


@pytest.mark.parametrize("lacking", [None, "fc", "vcdr"])
def test_predictions_get_what_was_fitted(lacking):
    fc, labels = sample(1)
    from_vcdr, _ = sample(2)
    parts = {"fc": fc, "vcdr": from_vcdr}
    if lacking:
        parts[lacking] = None
    fitted = calibration.fit(parts["fc"], parts["vcdr"], labels, sensitivity=0.8)
    assert (fitted.num_images, fitted.num_glaucoma) == (60, labels.sum())
    assert fitted.sensitivity >= 0.8
    joined, diagnoses = [], []
    for i in range(60):
        own = {name: None if p is None else p[i] for name, p in parts.items()}
        before = Prediction(
            (1, 1),
            {} if own["fc"] is None else {"glaucoma": own["fc"]},
            probability_vcdr=own["vcdr"],
            probability=vcdr.combine(own["fc"], own["vcdr"]),
        )
        after = calibration.calibrated(before, fitted)
        assert after.uncalibrated == {
            "probability": before.probability,
            "probability_fc": own["fc"],
            "probability_vcdr": own["vcdr"],
        }
        if lacking != "fc":
            expected = calibration.scale(fc[i], fitted.temperature_fc)
            assert after.probability_fc == pytest.approx(expected)
        if lacking != "vcdr":
            expected = calibration.scale(from_vcdr[i], fitted.temperature_vcdr)
            assert after.probability_vcdr == pytest.approx(expected)
        joined.append(after.probability)
        diagnoses.append(after.diagnosis)
    found = np.array(diagnoses)
    assert found[labels == 1].mean() == pytest.approx(fitted.sensitivity)
    assert 1 - found[labels == 0].mean() == pytest.approx(fitted.specificity)
    assert calibration.fit_temperature(joined, labels) == pytest.approx(1, abs=1e-2)


def test_nothing_to_calibrate_stays_as_it_is():
    fitted = calibration.fit(*(sample(3)[0],) * 2, sample(3)[1])
    nothing = Prediction((1, 1))
    assert calibration.calibrated(nothing, fitted) is nothing
    one = dataclasses.replace(nothing, found={"glaucoma": 0.3}, probability=0.3)
    assert calibration.calibrated(one, None) is one


def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="both classes"):
        calibration.fit([0.1, 0.2], None, [1, 1])
    with pytest.raises(ValueError, match="no probability"):
        calibration.fit(None, None, [0, 1])
