"""Glaucoma from the vertical cup-to-disc ratio (vCDR), and the combined diagnosis.

A logistic regression on the vCDR gives a second probability of glaucoma beside that of
the fully connected classifier; the two are averaged.

Masks without disc and cup have no vCDR. The second probability is then the share of
glaucomas among the training images. The regression's probabilities of these images have
the same mean, so that such an image is averaged on the scale of all others and takes
its rank among them, and its diagnosis, from the classifier.

Reference:
  Pascal et al., Multi-task deep learning for glaucoma detection from color fundus
  images, Scientific Reports 12:12361, 2022.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from mtl_jax.metrics import has_both_classes


class VcdrClassifier(NamedTuple):
    """P(glaucoma | vCDR) = sigmoid(coefficient * vCDR + intercept).

    `VcdrClassifier(**json.loads(json.dumps(classifier._asdict())))` is the same again.

    Attributes:
      coefficient: of the vCDR.
      intercept: of the logit.
      prior: P(glaucoma) of an image without a vCDR.
    """

    coefficient: float
    intercept: float
    prior: float


def fit(vcdr: ArrayLike, glaucoma: ArrayLike, C: float = 1.0) -> VcdrClassifier | None:
    """Fits the logistic regression as the original authors do (lbfgs, C = 1).

    A vCDR spans about half a unit, so that C = 1 shrinks the coefficient a great deal;
    a larger C lets the ratio speak louder in the averaged probability.

    Args:
      vcdr: [N] ratios of the training images, from their true masks.
      glaucoma: [N] zeros and ones.
      C: inverse strength of the penalty coefficient^2 / 2; the intercept is free.

    Returns:
      The classifier, its prior the share of ones; None unless both classes are present.

    Raises:
      ValueError: lengths differ, a ratio is not finite, or C is not positive.
    """
    if not has_both_classes(glaucoma):
        return None
    # Seconds that a prediction need not take.
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=C)
    regression.fit(np.asarray(vcdr, np.float64)[:, np.newaxis], np.asarray(glaucoma))
    return VcdrClassifier(
        coefficient=regression.coef_.item(),
        intercept=regression.intercept_.item(),
        prior=float(np.mean(glaucoma)),
    )


def predict_probability(classifier: VcdrClassifier, vcdr: float | None) -> float:
    """Probability of glaucoma at a ratio; the prior where there is none."""
    if vcdr is None:
        return classifier.prior
    return float(expit(classifier.coefficient * vcdr + classifier.intercept))


def combine(
    probability_fc: float | None, probability_vcdr: float | None
) -> float | None:
    """The mean of those of the two probabilities that are present; None if none is."""
    present = [p for p in (probability_fc, probability_vcdr) if p is not None]
    return float(np.mean(present)) if present else None


def diagnose(probability: float | None) -> bool | None:
    """Glaucoma if the combined probability is >= 0.5; None without a probability."""
    return None if probability is None else bool(probability >= 0.5)
