"""Computes the metrics of the paper and of the REFUGE challenge from per-image rows.

A metric is one `Metric`. A metric without labels is None (JSON null), never 0.

Reference:
  Pascal et al., Multi-task deep learning for glaucoma detection from color fundus
  images, Scientific Reports 12:12361, 2022.
"""

from mtl_jax.metrics.formulas import (
    SPECIFICITY,
    Reliability,
    auc,
    calibration_error,
    dice,
    distance,
    has_both_classes,
    reliability,
    roc,
    sensitivity,
    sensitivity_at_specificity,
    specificity,
)
from mtl_jax.metrics.registry import (
    DIAGNOSIS,
    METRICS,
    Metric,
    Place,
    Unit,
    at,
    every,
    probability_of,
    register,
    rising,
    uncalibrated,
)
from mtl_jax.metrics.rows import (
    columns,
    intervals,
    shares,
    summarize,
    validation_score,
)

__all__ = [
    "DIAGNOSIS",
    "METRICS",
    "Metric",
    "Place",
    "Reliability",
    "SPECIFICITY",
    "Unit",
    "at",
    "auc",
    "calibration_error",
    "columns",
    "dice",
    "distance",
    "every",
    "has_both_classes",
    "intervals",
    "probability_of",
    "register",
    "reliability",
    "rising",
    "roc",
    "sensitivity",
    "sensitivity_at_specificity",
    "shares",
    "specificity",
    "summarize",
    "uncalibrated",
    "validation_score",
]
