"""Means over runs, and how far the differences between methods can be trusted."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 10_000


class Summary(NamedTuple):
    """Of some runs.

    Attributes:
      mean: of their values.
      deviation: sample standard deviation (n - 1); None of a single run.
      count: of the runs that have a value.
    """

    mean: float
    deviation: float | None
    count: int


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean and deviation; None without values."""
    if not len(values):
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), deviation, len(values))


class Difference(NamedTuple):
    """Of two methods over the runs they have in common.

    Attributes:
      mean: of the differences.
      low: of the 95 % interval.
      high: of the 95 % interval.
      count: of the pairs.
    """

    mean: float
    low: float
    high: float
    count: int


def paired_difference(
    values: Mapping[object, float], reference: Mapping[object, float], seed: int = 0
) -> Difference | None:
    """How much larger values are than those of the same fold and seed.

    The interval is of the bootstrap over pairs, by percentiles; with as few pairs as
    there are folds it is narrower than it should be.

    Args:
      values: by fold and seed.
      reference: of the other method, likewise.
      seed: of the resampling.

    Returns:
      None with fewer than two pairs.
    """
    pairs = sorted(set(values) & set(reference), key=str)
    if len(pairs) < 2:
        return None
    differences = np.array([values[pair] - reference[pair] for pair in pairs])
    rng = np.random.default_rng(seed)
    drawn = rng.choice(differences, (NUM_RESAMPLES, len(pairs))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(differences.mean()), float(low), float(high), len(pairs))


def auc_difference(
    scores: np.ndarray, reference: np.ndarray, labels: np.ndarray, seed: int = 0
) -> Difference | None:
    """How much larger the mean AUC of a method's runs is on one common test split.

    The interval is of the bootstrap over images, glaucomas and healthy eyes apart,
    which tells how it would vary with other patients.

    Args:
      scores: [R, N] probabilities of glaucoma by the runs of the method.
      reference: [S, N] those by the runs of the other.
      labels: [N] zeros and ones.
      seed: of the resampling.

    Returns:
      `count` is the number of images; None unless both classes are present.
    """
    labels = np.asarray(labels) > 0
    if labels.all() or not labels.any():
        return None
    wins = [_wins(rows, labels) for rows in (scores, reference)]
    difference = wins[0] - wins[1]
    rng = np.random.default_rng(seed)
    num_positive, num_negative = difference.shape
    # How often each image is drawn; the mean of a resample is a bilinear form in it.
    positive = rng.multinomial(
        num_positive, np.full(num_positive, 1 / num_positive), NUM_RESAMPLES
    )
    negative = rng.multinomial(
        num_negative, np.full(num_negative, 1 / num_negative), NUM_RESAMPLES
    )
    drawn = ((positive @ difference) * negative).sum(1) / (num_positive * num_negative)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(difference.mean()), float(low), float(high), len(labels))


def _wins(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[P, M] how often runs score a glaucoma above a healthy eye; ties count half.

    The mean of it is the mean AUC of the runs.
    """
    scores = np.atleast_2d(np.asarray(scores, float))
    positive, negative = scores[:, labels, None], scores[:, None, ~labels]
    return ((positive > negative) + 0.5 * (positive == negative)).mean(0)
