"""Glaucoma from the vertical cup-to-disc ratio (vCDR), and the combined diagnosis.

A logistic regression on the vCDR gives a second probability of glaucoma. It is averaged
with that of the fully connected classifier.

If both masks are empty, there is no vCDR. The second probability is then the share of
glaucomas among the training images, which equals the regression's mean probability on
them. The average is therefore comparable with those of other images, and only the
classifier decides the image's rank and diagnosis.

Reference:
  Pascal et al., Multi-task deep learning for glaucoma detection from color fundus
  images, Scientific Reports 12:12361, 2022.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from mtl_jax.metrics import has_both_classes


class VcdrClassifier(NamedTuple):
    """P(glaucoma | vCDR) = sigmoid(coefficient * vCDR + intercept).

    `VcdrClassifier(**json.loads(json.dumps(classifier._asdict())))` restores it.

    Attributes:
      coefficient: coefficient of the vCDR.
      intercept: intercept of the logit.
      prior: P(glaucoma) of an image without a vCDR.
    """

    coefficient: float
    intercept: float
    prior: float


def fit(vcdr: ArrayLike, glaucoma: ArrayLike, C: float = 1.0) -> VcdrClassifier | None:
    """Fits the logistic regression as the original authors do (lbfgs, C = 1).

    The vCDR has a range of about 0.5, so that C = 1 shrinks the coefficient strongly. A
    larger C increases the weight of the ratio in the averaged probability.

    Args:
      vcdr: [N] ratios of the training images, from their true masks.
      glaucoma: [N] zeros and ones.
      C: inverse strength of the penalty coefficient^2 / 2; the intercept is free.

    Returns:
      The classifier, whose prior is the share of ones; None unless both classes are
      present.

    Raises:
      ValueError: if lengths differ, a ratio is not finite, or C is not positive.
    """
    if not has_both_classes(glaucoma):
        return None
    # The import takes seconds, and predictions do not need it.
    from sklearn.linear_model import LogisticRegression

    glaucoma = np.asarray(glaucoma)
    regression = LogisticRegression(C=C)
    regression.fit(np.asarray(vcdr, np.float64)[:, np.newaxis], glaucoma)
    return VcdrClassifier(
        coefficient=regression.coef_.item(),
        intercept=regression.intercept_.item(),
        prior=float(glaucoma.mean()),
    )


def predict_probability(classifier: VcdrClassifier, vcdr: float | None) -> float:
    """Returns the probability of glaucoma at a ratio; without a ratio, the prior."""
    if vcdr is None:
        return classifier.prior
    return float(expit(classifier.coefficient * vcdr + classifier.intercept))


def mean(classifiers: Sequence[VcdrClassifier]) -> VcdrClassifier | None:
    """Averages classifiers: the mean of their logits and priors; None without any."""
    if not classifiers:
        return None
    return VcdrClassifier(*np.mean(classifiers, axis=0).tolist())


def combine(
    probability_fc: float | None,
    probability_vcdr: float | None,
    weight_fc: float = 0.5,
) -> float | None:
    """Joins the two probabilities of glaucoma.

    Args:
      probability_fc: probability from the classifier.
      probability_vcdr: probability from the ratio.
      weight_fc: weight of the former in the mean, in [0, 1].

    Returns:
      The mean; if one of the two is None, the other; None if both are.
    """
    if probability_fc is None or probability_vcdr is None:
        present = (p for p in (probability_fc, probability_vcdr) if p is not None)
        return next(map(float, present), None)
    return float(weight_fc * probability_fc + (1 - weight_fc) * probability_vcdr)


def diagnose(probability: float | None, threshold: float = 0.5) -> bool | None:
    """Diagnoses glaucoma from a threshold on; None without a probability."""
    return None if probability is None else bool(probability >= threshold)
