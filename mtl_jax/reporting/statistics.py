"""Computes bootstrap intervals of the differences between methods."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

NUM_RESAMPLES = 10_000

# Resamples held in memory at once.
_BATCH = 200


class Difference(NamedTuple):
    """The mean difference between two methods, and how certain it is.

    Attributes:
      mean: mean of the differences.
      low: lower end of the 95 % interval.
      high: upper end of the 95 % interval.
      count: number of pairs of runs, or of images.
    """

    mean: float
    low: float
    high: float
    count: int


def paired_difference(values: pd.Series, reference: pd.Series) -> Difference | None:
    """Compares the runs of two methods that have the same fold and seed.

    The interval is the percentile bootstrap over pairs. With as few pairs as there are
    folds it is too narrow.

    Args:
      values: values of one method, indexed by fold and seed; NaN where there is none.
      reference: values of the other method, with the same kind of index.

    Returns:
      Values minus reference; None with fewer than two pairs.
    """
    pairs = (values - reference).dropna().to_numpy()
    if len(pairs) < 2:
        return None
    return _bootstrap([pairs], np.mean, pairs.mean(), len(pairs))


def auc_difference(
    scores: np.ndarray, reference: np.ndarray, labels: np.ndarray
) -> Difference | None:
    """Compares the mean AUC of two methods' runs on the images of one test split.

    The interval is the percentile bootstrap over images, which resamples glaucomas and
    healthy eyes separately. It tells how the difference would vary with other patients.

    Args:
      scores: [R, N] probabilities of glaucoma by the runs of one method.
      reference: [S, N] probabilities by the runs of the other method.
      labels: [N] zeros and ones.

    Returns:
      Scores minus reference; None with fewer than two images of either class.
    """
    labels = np.asarray(labels) > 0
    if min(labels.sum(), (~labels).sum()) < 2:
        return None
    # [P, M], for each pair of a glaucoma and a healthy eye.
    difference = _wins(scores, labels) - _wins(reference, labels)

    def mean_of_resamples(
        positive: np.ndarray, negative: np.ndarray, axis: int
    ) -> np.ndarray:
        by_negative = difference[positive].mean(-2)
        return np.take_along_axis(by_negative, negative, -1).mean(-1)

    images = [np.arange(count) for count in difference.shape]
    return _bootstrap(images, mean_of_resamples, difference.mean(), len(labels))


def _bootstrap(
    samples: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray],
    mean: float,
    count: int,
) -> Difference:
    """Resamples each sample separately; the same samples give the same interval."""
    low, high = stats.bootstrap(
        samples,
        statistic,
        n_resamples=NUM_RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=0,
    ).confidence_interval
    return Difference(float(mean), float(low), float(high), count)


def _wins(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[P, M]: the share of runs that score a glaucoma above a healthy eye.

    A tie counts half. The mean of this array is the mean AUC of the runs.
    """
    positive, negative = scores[:, labels, None], scores[:, None, ~labels]
    return ((positive > negative) + 0.5 * (positive == negative)).mean(0)
