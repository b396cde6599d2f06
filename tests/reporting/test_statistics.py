import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mtl_jax.reporting import statistics


def test_summaries_by_hand():
    assert statistics.summarize([]) is None
    assert statistics.summarize([3.0]) == (3.0, None, 1)
    mean, deviation, count = statistics.summarize([1.0, 2.0, 6.0])
    assert (mean, count) == (3.0, 3)
    assert deviation == pytest.approx(7**0.5)


def test_differences_are_of_pairs():
    """A common effect of the folds, however large, is not part of the interval."""
    folds = dict(enumerate([10.0, -50.0, 30.0, 0.0, 7.0]))
    better = {fold: value + 1 + 0.1 * (fold - 2) for fold, value in folds.items()}
    found = statistics.paired_difference({**better, "other": 99.0}, folds)
    assert found.mean == pytest.approx(1)
    assert found.count == 5
    assert 0.8 < found.low < 0.95 < 1.05 < found.high < 1.2
    assert statistics.paired_difference({0: 1.0}, folds) is None


@given(st.integers(0, 2**31 - 1))
def test_the_difference_of_aucs_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, 18)]
    # Few values, so that there are ties.
    runs = rng.integers(0, 4, (5, 20)) / 4
    found = statistics.auc_difference(runs[:2], runs[2:], labels)
    areas = [roc_auc_score(labels, scores) for scores in runs]
    assert found.mean == pytest.approx(np.mean(areas[:2]) - np.mean(areas[2:]))
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert found.count == 20


def test_the_interval_covers_as_often_as_it_says(monkeypatch):
    """200 draws of images from a population whose difference of AUCs is known."""
    monkeypatch.setattr(statistics, "NUM_RESAMPLES", 500)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    # AUC of a normal shift d is Phi(d / sqrt 2): 0.760 for 1, and 0.638 for 0.5.
    truth = 0.76025 - 0.63816
    covered = 0
    for _ in range(200):
        noise = rng.normal(size=(2, 80))
        found = statistics.auc_difference(
            noise[:1] + labels, noise[1:] + 0.5 * labels, labels
        )
        covered += found.low <= truth <= found.high
    assert 180 <= covered <= 198
