"""Metrics of the paper and of the REFUGE challenge, from per-image rows.

A metric without labels is None (JSON null), never 0.

References:
  Pascal et al., Multi-task deep learning for glaucoma detection from color fundus
  images, Scientific Reports 12:12361, 2022.
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020, and the
  evaluation program published with it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# The challenge's operating point.
SPECIFICITY = 0.85

# The score in a row from which each area under the ROC curve is computed.
_AUC_SCORES = {
    "auc": "probability",
    "auc_fc": "probability_fc",
    "auc_vcdr": "probability_vcdr",
}

_MEANS = ("dice_disc", "dice_cup", "fovea_error", "fovea_error_native")


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


def fovea_distance(predicted_xy: ArrayLike, true_xy: ArrayLike) -> float:
    """Computes the Euclidean distance of two points (x, y), in their pixels."""
    return math.dist(predicted_xy, true_xy)


def auc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Computes the area under the ROC curve; ties count one half.

    Args:
      scores: [N] floats, larger for class 1.
      labels: [N] zeros and ones.

    Returns:
      A number in [0, 1]; None unless both classes are present.
    """
    if not has_both_classes(labels):
        return None
    # The import takes seconds, and predictions do not need it.
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(np.asarray(labels), np.asarray(scores)))


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


def has_both_classes(labels: ArrayLike) -> bool:
    """Whether `labels` ([N] zeros and ones) holds at least one of each."""
    return len(np.unique(np.asarray(labels))) == 2


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reduces per-image rows to the metrics of a data set.

    Args:
      rows: one mapping per image. None or an absent key stands for "not annotated" or
        "not predicted". The keys are `glaucoma` (truth, 0 or 1), `probability`
        (averaged), `probability_fc`, `probability_vcdr`, `vcdr`, `vcdr_true`,
        `dice_disc`, `dice_cup`, `fovea_error` (model pixels) and `fovea_error_native`
        (native pixels).

    Returns:
      `auc`, `auc_fc`, `auc_vcdr` and `sensitivity_at_85_specificity` (of the averaged
      probability) over the images with a diagnosis and that score. `vcdr_mae`,
      `dice_disc`, `dice_cup`, `fovea_error` and `fovea_error_native` are means over the
      images that have them. A metric without images is None. `num_images` maps each of
      these names to its number of images. If it is positive and an AUC is None, all
      images were of one class.
    """
    metrics: dict[str, Any] = {}
    num_images: dict[str, int] = {}
    for name, score in _AUC_SCORES.items():
        scores, labels = _columns(rows, score, "glaucoma")
        metrics[name] = auc(scores, labels)
        num_images[name] = len(scores)
    scores, labels = _columns(rows, "probability", "glaucoma")
    metrics["sensitivity_at_85_specificity"] = sensitivity_at_specificity(
        scores, labels
    )
    num_images["sensitivity_at_85_specificity"] = len(scores)
    predicted, true = _columns(rows, "vcdr", "vcdr_true")
    metrics["vcdr_mae"] = _mean(np.abs(predicted - true))
    num_images["vcdr_mae"] = len(predicted)
    for name in _MEANS:
        (values,) = _columns(rows, name)
        metrics[name] = _mean(values)
        num_images[name] = len(values)
    return {**metrics, "num_images": num_images}


def validation_score(metrics: Mapping[str, Any], image_size: int) -> float | None:
    """Computes one number, larger for better, that chooses the best checkpoint.

    Args:
      metrics: result of `summarize`.
      image_size: pixels a side of the model image, which scale the fovea error.

    Returns:
      The mean of `auc`, `dice_disc`, `dice_cup` and 1 - `fovea_error` / `image_size`,
      without those that are None; None if all are.
    """
    parts = [metrics.get(name) for name in ("auc", "dice_disc", "dice_cup")]
    fovea_error = metrics.get("fovea_error")
    if fovea_error is not None:
        parts.append(1 - fovea_error / image_size)
    return _mean([part for part in parts if part is not None])


def _columns(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[np.ndarray]:
    """float64 columns `keys` of the rows that have all of them."""
    complete = [
        values
        for values in ([row.get(key) for key in keys] for row in rows)
        if all(value is not None for value in values)
    ]
    return list(np.array(complete, np.float64).reshape(-1, len(keys)).T)


def _mean(values: ArrayLike) -> float | None:
    return float(np.mean(values)) if len(values) else None
