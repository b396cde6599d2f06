"""Calibrates the probabilities of glaucoma, joins them, and chooses a threshold.

All is fitted on photographs that the network was not trained on. The probabilities of
the classifier and of the vertical cup-to-disc ratio each get a temperature (Guo et al.
2017): P becomes sigmoid(logit(P) / T). They are joined by a weight, and the joined
probability gets a temperature of its own. The threshold is the operating point: the
calibrated probability from which on the diagnosis is glaucoma.

A few photographs may be separated without error. The likelihood then grows for ever as
T falls. Platt (1999) therefore replaces 1 by (n + 1) / (n + 2) for n photographs of
class 1, and 0 by 1 / (m + 2) for m of class 0. With many photographs this changes
nothing. Temperatures are also bounded.

References:
  Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
  Platt, Probabilistic outputs for support vector machines, in: Advances in Large Margin
  Classifiers, 1999.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from mtl_jax.inference import vcdr
from mtl_jax.inference.prediction import Prediction
from mtl_jax.metrics import DIAGNOSIS, has_both_classes

# The temperatures that can be fitted.
TEMPERATURES = (0.1, 10.0)

# Fewer photographs of a class are few.
FEW = 20

# Weights of the classifier that are compared.
_WEIGHTS: list[float] = np.linspace(0, 1, 21).tolist()

# Keeps the logit of a probability finite.
LEAST_PROBABILITY = 1e-12


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is fitted, and what it rests on.

    Attributes:
      temperature_fc: temperature of the classifier's probability; None without one.
      temperature_vcdr: temperature of the ratio's probability; None without one.
      weight_fc: weight of the classifier in the joined probability, in [0, 1].
      temperature: temperature of the joined probability.
      threshold: joined, calibrated probability from which on the diagnosis is glaucoma.
      wished_sensitivity: sensitivity that the threshold was chosen for, or None.
      wished_specificity: specificity that the threshold was chosen for, or None.
      sensitivity: sensitivity on the photographs that it was fitted on.
      specificity: specificity on them.
      num_images: number of these photographs.
      num_glaucoma: number of glaucomas among them.
    """

    temperature_fc: float | None
    temperature_vcdr: float | None
    weight_fc: float
    temperature: float
    threshold: float
    wished_sensitivity: float | None
    wished_specificity: float | None
    sensitivity: float
    specificity: float
    num_images: int
    num_glaucoma: int


def scale(probability: ArrayLike, temperature: float) -> np.ndarray:
    """Divides the logits of probabilities by a temperature."""
    inside = np.clip(
        np.asarray(probability, np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY
    )
    return expit(logit(inside) / temperature)


def log_loss(probability: ArrayLike, labels: ArrayLike) -> float:
    """Computes the mean of `log_losses`."""
    return float(np.mean(log_losses(probability, labels)))


def log_losses(probability: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Computes the cross-entropy of each photograph with Platt's targets.

    Args:
      probability: [N] probabilities of class 1.
      labels: [N] zeros and ones.

    Returns:
      [N] losses.
    """
    inside = np.clip(
        np.asarray(probability, np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY
    )
    labels = np.asarray(labels)
    ones = np.count_nonzero(labels)
    target = np.where(labels, (ones + 1) / (ones + 2), 1 / (len(labels) - ones + 2))
    return -target * np.log(inside) - (1 - target) * np.log1p(-inside)


def fit_temperature(probability: ArrayLike, labels: ArrayLike) -> float:
    """Finds the temperature in `TEMPERATURES` with the smallest `log_loss`.

    It is 1 if all probabilities are equal.

    Args:
      probability: [N] probabilities of class 1.
      labels: [N] zeros and ones.
    """
    from scipy import optimize

    # Equal probabilities have no order that a temperature could spread or narrow.
    if np.ptp(np.asarray(probability)) == 0:
        return 1.0
    # The loss is convex in 1 / T.
    low, high = TEMPERATURES
    found = optimize.minimize_scalar(
        lambda inverse: log_loss(scale(probability, 1 / inverse), labels),
        bounds=(1 / high, 1 / low),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(1 / found.x)


def fit_weight(fc: ArrayLike, from_vcdr: ArrayLike, labels: ArrayLike) -> float:
    """Finds the classifier's weight in steps of 0.05 with the smallest `log_loss`.

    It stays 0.5, as in the paper, with fewer than `FEW` photographs of a class, or
    unless the best weight is better by more than the standard error of the difference:
    a few photographs cannot tell weights apart.

    Args:
      fc: [N] calibrated probabilities of the classifier.
      from_vcdr: [N] calibrated probabilities of the ratio.
      labels: [N] zeros and ones.

    Returns:
      The weight.
    """
    own, other = np.asarray(fc, np.float64), np.asarray(from_vcdr, np.float64)
    losses = {w: log_losses(w * own + (1 - w) * other, labels) for w in _WEIGHTS}
    best = min(_WEIGHTS, key=lambda w: losses[w].mean())
    gain = losses[0.5] - losses[best]
    # Rounding alone is no gain.
    needed = max(gain.std() / np.sqrt(len(gain)), 1e-9)
    is_enough = np.bincount(np.asarray(labels, int), minlength=2).min() >= FEW
    return best if is_enough and gain.mean() > needed else 0.5


def operating_point(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> float:
    """Chooses the threshold with a wished sensitivity or specificity.

    A score of the threshold or more is positive. Thresholds lie half-way between two
    neighbouring scores, so that rounding moves no image across.

    Args:
      scores: [N] probabilities of class 1.
      labels: [N] zeros and ones of both classes.
      sensitivity: the largest threshold that reaches it is chosen, which has the best
        specificity.
      specificity: the smallest threshold that reaches it is chosen, which has the best
        sensitivity.

    Returns:
      The threshold; 0.5 if nothing is wished.
    """
    if sensitivity is None and specificity is None:
        return 0.5
    scores, is_positive = np.asarray(scores, np.float64), np.asarray(labels) == 1
    known = np.unique(scores)
    above = 1.0 if known[-1] < 1 else np.nextafter(known[-1], 2)
    edges = np.array([0.0, *known, above])
    middle = (edges[:-1] + edges[1:]) / 2
    # Two neighbouring floats have no middle.
    thresholds = np.where(middle > edges[:-1], middle, edges[1:])
    found = scores >= thresholds[:, np.newaxis]
    if sensitivity is not None:
        return float(thresholds[found[:, is_positive].mean(1) >= sensitivity][-1])
    return float(thresholds[(~found)[:, ~is_positive].mean(1) >= specificity][0])


def fit(
    fc: Sequence[float] | None,
    from_vcdr: Sequence[float] | None,
    labels: Sequence[int],
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> Calibration:
    """Fits the calibration on the probabilities of photographs.

    Args:
      fc: [N] probabilities of the classifier; None if the network has none.
      from_vcdr: [N] probabilities of the ratio; None if the network has none.
      labels: [N] zeros and ones.
      sensitivity: sensitivity that the threshold is to reach, if any.
      specificity: specificity that the threshold is to reach, if any.

    Raises:
      ValueError: unless both classes are present, and one of the probabilities.
    """
    if not has_both_classes(labels):
        raise ValueError("a calibration needs labels of both classes")
    temperatures: list[float | None] = [None, None]
    scaled = []
    for i, own in enumerate((fc, from_vcdr)):
        if own is not None:
            temperatures[i] = temperature = fit_temperature(own, labels)
            scaled.append(scale(own, temperature))
    if not scaled:
        raise ValueError("there is no probability to calibrate")
    first, last = scaled[0], scaled[-1]
    weight = fit_weight(first, last, labels) if len(scaled) == 2 else 0.5
    joined = weight * first + (1 - weight) * last
    temperature = fit_temperature(joined, labels)
    joined = scale(joined, temperature)
    threshold = operating_point(
        joined, labels, sensitivity=sensitivity, specificity=specificity
    )
    found, is_positive = joined >= threshold, np.asarray(labels) == 1
    return Calibration(
        *temperatures,
        weight_fc=weight,
        temperature=temperature,
        threshold=threshold,
        wished_sensitivity=sensitivity,
        wished_specificity=specificity,
        sensitivity=float(found[is_positive].mean()),
        specificity=float((~found)[~is_positive].mean()),
        num_images=len(labels),
        num_glaucoma=int(is_positive.sum()),
    )


def calibrated(prediction: Prediction, calibration: Calibration | None) -> Prediction:
    """Calibrates a prediction's probabilities of glaucoma, and sets its threshold.

    Args:
      prediction: a prediction as `interpret` returns it.
      calibration: calibration of its network; None leaves it as it is.
    """
    if calibration is None or prediction.probability is None:
        return prediction
    before = {
        "probability": prediction.probability,
        "probability_fc": prediction.probability_fc,
        "probability_vcdr": prediction.probability_vcdr,
    }
    fc = _scaled(prediction.probability_fc, calibration.temperature_fc)
    from_vcdr = _scaled(prediction.probability_vcdr, calibration.temperature_vcdr)
    joined = vcdr.combine(fc, from_vcdr, calibration.weight_fc)
    return dataclasses.replace(
        prediction,
        found={**prediction.found, **({} if fc is None else {DIAGNOSIS: fc})},
        probability_vcdr=from_vcdr,
        probability=_scaled(joined, calibration.temperature),
        threshold=calibration.threshold,
        uncalibrated=before,
    )


def _scaled(probability: float | None, temperature: float | None) -> float | None:
    if probability is None or temperature is None:
        return probability
    return float(scale(probability, temperature))
