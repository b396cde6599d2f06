import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from mtl_jax.reporting import statistics


def test_differences_are_of_pairs():
    """A common effect of the folds, however large, is not part of the interval."""
    folds = pd.Series([10.0, -50.0, 30.0, 0.0, 7.0, np.nan])
    better = folds + 1 + 0.1 * (folds.index - 2)
    # The reference lacks these two, and the order is another.
    better[5] = better[6] = 99.0
    found = statistics.paired_difference(better[::-1], folds)
    assert found.mean == pytest.approx(1)
    assert found.count == 5
    assert 0.8 < found.low < 0.95 < 1.05 < found.high < 1.2
    assert statistics.paired_difference(better[:1], folds) is None


def test_an_interval_of_two_pairs_is_their_range():
    """A quarter of the resamples is the first pair twice, another the second."""
    found = statistics.paired_difference(pd.Series([1.0, 4.0]), pd.Series([0.0, 0.0]))
    assert found == (2.5, 1.0, 4.0, 2)


@given(st.integers(0, 2**31 - 1))
def test_the_difference_of_aucs_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 0, 1, 1, rng.integers(0, 2, 16)]
    # Few values, so that there are ties.
    runs = rng.integers(0, 4, (5, 20)) / 4
    found = statistics.auc_difference(runs[:2], runs[2:], labels)
    areas = [roc_auc_score(labels, scores) for scores in runs]
    assert found.mean == pytest.approx(np.mean(areas[:2]) - np.mean(areas[2:]))
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert found.count == 20
    assert statistics.auc_difference(runs[:2], runs[2:], labels) == found


def test_a_class_of_one_image_cannot_be_resampled():
    scores = np.array([[0.1, 0.2, 0.9]])
    assert statistics.auc_difference(scores, scores, np.array([0, 0, 1])) is None


def test_intervals_are_of_resamples_within_each_class():
    """Against resamples whose AUC is from the sum of ranks (Mann and Whitney)."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [12, 6])
    first, second = rng.normal(size=(2, 18)) + np.outer([1.5, 0.5], labels)
    healthy, glaucomas = (
        rng.integers(0, 12, (5000, 12)),
        rng.integers(12, 18, (5000, 6)),
    )
    images = np.concatenate([healthy, glaucomas], axis=1)
    sums = [stats.rankdata(s[images], axis=1)[:, 12:].sum(1) for s in (first, second)]
    drawn = (sums[0] - sums[1]) / (12 * 6)
    found = statistics.auc_difference(first[None], second[None], labels)
    # About four standard errors of such a percentile.
    np.testing.assert_allclose(found[1:3], np.percentile(drawn, [2.5, 97.5]), atol=0.03)


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
