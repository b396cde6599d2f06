"""Formulas of the metrics, on NumPy arrays.

References:
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020, and the
  evaluation program published with it.
  Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
  Nixon et al., Measuring Calibration in Deep Learning, CVPR Workshops 2019.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# The challenge's operating point.
SPECIFICITY = 0.85

# Largest number of bins of a reliability diagram, and smallest number of images in one.
NUM_BINS, BIN_SIZE = 10, 5


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Computes the Dice coefficient 2 |A and B| / (|A| + |B|) of two masks.

    Args:
      prediction: [H, W], non-zero inside.
      truth: [H, W], non-zero inside.

    Returns:
      A number in [0, 1]: 1 if both masks are empty, 0 if only one is.

    Raises:
      ValueError: if the shapes differ.
    """
    prediction, truth = np.asarray(prediction) != 0, np.asarray(truth) != 0
    if prediction.shape != truth.shape:
        raise ValueError(f"masks differ in shape: {prediction.shape}, {truth.shape}")
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    if total == 0:
        return 1.0
    return 2 * np.count_nonzero(prediction & truth) / total


def distance(predicted_xy: Iterable[float], true_xy: Iterable[float]) -> float:
    """Computes the Euclidean distance between two points (x, y), in their pixels."""
    return math.dist(predicted_xy, true_xy)


def auc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the area under the ROC curve; ties count one half.

    It is the statistic of Mann and Whitney over the number of pairs.

    Args:
      scores: [N] floats, larger for class 1.
      labels: [N] zeros and ones.

    Returns:
      A number in [0, 1]; None unless both classes are present.
    """
    if not has_both_classes(labels):
        return None
    # Takes a fraction of the time of scikit-learn's function, for `intervals`. The
    # import takes long, and predictions do not need it.
    from scipy import stats

    ranks = stats.rankdata(scores)
    positive = np.asarray(labels) > 0
    count, others = positive.sum(), (~positive).sum()
    wins = ranks[positive].sum() - count * (count + 1) / 2
    return float(wins / (count * others))


def roc(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Computes the ROC curve: the origin, and a point for each distinct score.

    Args:
      scores: [N] floats, larger for class 1.
      labels: [N] zeros and ones.

    Returns:
      False-positive rates and true-positive rates, each [K] and non-decreasing, from
      (0, 0) to (1, 1).

    Raises:
      ValueError: if only one class is present.
    """
    if not has_both_classes(labels):
        raise ValueError("a ROC curve needs labels of both classes")
    from sklearn.metrics import roc_curve

    # With dropped points, the best sensitivity at each rate, and the interpolation,
    # would depend on scikit-learn's choice.
    false_positive_rate, true_positive_rate, _ = roc_curve(
        np.asarray(labels), np.asarray(scores), drop_intermediate=False
    )
    return false_positive_rate, true_positive_rate


def sensitivity_at_specificity(
    scores: ArrayLike, labels: ArrayLike, specificity: float = SPECIFICITY
) -> float | None:
    """Computes the sensitivity at a given specificity from the ROC curve.

    The highest sensitivity at each false-positive rate counts, and the curve is linear
    in between. The challenge's program interpolates over all points, including those
    of equal rate: a perfect classifier can score 0.15 there. Here it scores 1.

    Args:
      scores: [N] floats, larger for class 1.
      labels: [N] zeros and ones.
      specificity: in [0, 1].

    Returns:
      A number in [0, 1]; None unless both classes are present.
    """
    if not has_both_classes(labels):
        return None
    false_positive_rate, true_positive_rate = roc(scores, labels)
    # Sensitivity is non-decreasing, so the last point at each rate is the highest.
    last = np.append(np.diff(false_positive_rate) > 0, True)
    return float(
        np.interp(1 - specificity, false_positive_rate[last], true_positive_rate[last])
    )


def sensitivity(diagnoses: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the share of class 1 that is diagnosed; None without class 1.

    Args:
      diagnoses: [N] zeros and ones that are predicted.
      labels: [N] zeros and ones.
    """
    return mean(np.asarray(diagnoses)[np.asarray(labels) == 1])


def specificity(diagnoses: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the share of class 0 that is not diagnosed; see `sensitivity`."""
    return mean(1 - np.asarray(diagnoses)[np.asarray(labels) == 0])


class Reliability(NamedTuple):
    """How often images of a similar probability are of class 1.

    Attributes:
      probability: [K] mean probability of each bin, ascending.
      share: [K] share of class 1 among its images.
      count: [K] number of its images.
    """

    probability: np.ndarray
    share: np.ndarray
    count: np.ndarray


def reliability(probabilities: ArrayLike, labels: ArrayLike) -> Reliability:
    """Divides images into bins of equal numbers by their probability.

    Bins of equal width (Guo et al. 2017) leave most of a small set in one or two bins,
    and few images in the others. Quantiles (Nixon et al. 2019) give all bins a similar
    number: a tenth of the images, but no fewer than 5. Equal probabilities are in one
    bin.

    Args:
      probabilities: [N] probabilities of class 1, N > 0.
      labels: [N] zeros and ones.
    """
    values, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    num_bins = min(max(len(values) // BIN_SIZE, 1), NUM_BINS)
    edges = np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1])
    bins = np.searchsorted(edges, values)
    count = np.bincount(bins)
    is_used = count > 0

    def mean(of: np.ndarray) -> np.ndarray:
        return np.bincount(bins, of)[is_used] / count[is_used]

    return Reliability(mean(values), mean(labels), count[is_used])


def calibration_error(probabilities: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the expected calibration error (Guo et al. 2017, equation 3).

    It is the mean over images of the distance between the mean probability of their bin
    and its share of class 1; see `reliability` for the bins.

    Args:
      probabilities: [N] probabilities of class 1.
      labels: [N] zeros and ones.

    Returns:
      A number in [0, 1]; None without images.
    """
    if not len(np.asarray(labels)):
        return None
    probability, share, count = reliability(probabilities, labels)
    return float(np.average(np.abs(probability - share), weights=count))


def has_both_classes(labels: ArrayLike) -> bool:
    """Whether `labels` ([N] zeros and ones) holds at least one of each."""
    return len(np.unique(np.asarray(labels))) == 2


def mean(values: Sequence[float] | np.ndarray) -> float | None:
    """Averages values; None if there are none."""
    return float(np.mean(values)) if len(values) else None


def mean_distance(values: np.ndarray, references: np.ndarray) -> float | None:
    """Averages the distances of values from their references, each [N]."""
    return mean(np.abs(values - references))


def mean_of_first(values: np.ndarray, _: np.ndarray) -> float | None:
    """Averages a column over the images that have another one, too."""
    return mean(values)
