import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.inference import vcdr


def sample(seed, size=60):
    rng = np.random.default_rng(seed)
    glaucoma = (np.arange(size) < size // 5).astype(float)
    return np.clip(rng.normal(0.4 + 0.2 * glaucoma, 0.1), 0, 1), glaucoma


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 30.0]))
def test_penalised_likelihood_is_stationary_at_the_solution(seed, C):
    ratios, glaucoma = sample(seed)
    w, b, _ = vcdr.fit(ratios, glaucoma, C)
    # Of w^2 / 2 + C * sum_i -log P(label_i), whose minimum is unique.
    residual = 1 / (1 + np.exp(-(w * ratios + b))) - glaucoma
    # lbfgs stops at a gradient of 1e-4, of the objective divided by C * N.
    tolerance = 2e-4 * C * len(ratios)
    assert abs(w + C * np.sum(residual * ratios)) < tolerance
    assert abs(C * np.sum(residual)) < tolerance


def test_larger_c_shrinks_less():
    ratios, glaucoma = sample(0)
    slopes = [vcdr.fit(ratios, glaucoma, C).coefficient for C in (0.1, 1, 10, 100)]
    assert slopes == sorted(slopes)
    assert slopes[0] > 0


@pytest.mark.parametrize("labels", [[], [0, 0], [1]])
def test_one_class_has_no_classifier(labels):
    assert vcdr.fit(np.linspace(0.2, 0.8, len(labels)), labels) is None


def test_predict_probability():
    classifier = vcdr.VcdrClassifier(coefficient=3.0, intercept=-1.5, prior=0.1)
    for ratio, logit in ((0.0, -1.5), (0.5, 0.0), (1.0, 1.5)):
        expected = 1 / (1 + math.exp(-logit))
        found = vcdr.predict_probability(classifier, ratio)
        assert found == pytest.approx(expected, rel=1e-12)
    assert vcdr.predict_probability(classifier, None) == 0.1


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 30.0]))
def test_prior_is_the_mean_probability_of_the_training_images(seed, C):
    ratios, glaucoma = sample(seed)
    classifier = vcdr.fit(ratios, glaucoma, C)
    probabilities = [vcdr.predict_probability(classifier, ratio) for ratio in ratios]
    assert classifier.prior == glaucoma.mean()
    # Exact at the solution, as the intercept is not penalised; lbfgs stops near it.
    assert np.mean(probabilities) == pytest.approx(classifier.prior, abs=1e-3)


def test_classifier_survives_json():
    classifier = vcdr.fit(*sample(1))
    restored = vcdr.VcdrClassifier(**json.loads(json.dumps(classifier._asdict())))
    assert restored == classifier


@pytest.mark.parametrize(
    ("fc", "from_vcdr", "expected"),
    [(0.2, 0.6, 0.4), (0.2, None, 0.2), (None, 0.6, 0.6), (None, None, None)],
)
def test_combine(fc, from_vcdr, expected):
    assert vcdr.combine(fc, from_vcdr) == pytest.approx(expected)


def test_zero_is_a_probability_not_an_absence():
    assert vcdr.combine(0.0, 1.0) == 0.5
    assert vcdr.combine(0.0, None) == 0.0


def test_combine_by_weight():
    assert vcdr.combine(0.2, 0.6, 1.0) == 0.2
    assert vcdr.combine(0.2, 0.6, 0.0) == 0.6
    assert vcdr.combine(0.2, 0.6, 0.25) == pytest.approx(0.5)
    # What is not there has no weight.
    assert vcdr.combine(None, 0.6, 1.0) == 0.6
    assert vcdr.combine(0.2, None, 0.0) == 0.2


def test_the_mean_classifier_has_the_mean_logit():
    first, second = vcdr.VcdrClassifier(2, -1, 0.1), vcdr.VcdrClassifier(6, -2, 0.3)
    found = vcdr.mean([first, second])
    assert found == pytest.approx(vcdr.VcdrClassifier(4, -1.5, 0.2))
    assert vcdr.mean([first]) == first
    assert vcdr.mean([]) is None


def test_diagnose():
    assert vcdr.diagnose(0.3, 0.3) is True
    assert vcdr.diagnose(0.7, 0.8) is False
    assert vcdr.diagnose(0.5) is True
    assert vcdr.diagnose(np.float32(0.49)) is False
    assert vcdr.diagnose(None) is None
