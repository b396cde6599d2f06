"""Reduces per-image rows to the metrics of a data set, with their intervals."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.metrics import formulas, registry

# Resamples of `intervals`.
NUM_RESAMPLES = 1000


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reduces per-image rows to the metrics of a data set.

    Args:
      rows: one mapping per image, with the columns of the metrics as keys. None or an
        absent key stands for "not annotated" or "not predicted".

    Returns:
      Each metric over the images that have all of its columns. A metric without images
      is None. `num_images` maps each name to its number of images. If an AUC is None
      despite its images, they are all of one class.
    """
    metrics: dict[str, Any] = {}
    num_images: dict[str, int] = {}
    # Derived metrics stand first.
    for metric in sorted(registry.every().values(), key=lambda m: bool(m.task)):
        if metric.reduce is not None:
            values = columns(rows, *metric.columns)
            metrics[metric.name] = metric.reduce(*values)
            num_images[metric.name] = len(values[0])
    return {**metrics, "num_images": num_images}


def intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Computes 95 % intervals of the metrics that `summarize` computes.

    They are percentile bootstrap intervals over images. They tell how a metric would
    vary with other images of the same kind, not with another training. Images of one
    patient count as independent. A resample of one class has no AUC and is left out.

    Args:
      rows: as for `summarize`.

    Returns:
      Lower and upper end by metric. A metric that is None, or of a single image, has no
      interval. The same rows give the same intervals.
    """
    found = {}
    for metric in registry.every().values():
        if metric.reduce is None:
            continue
        values = columns(rows, *metric.columns)
        count = len(values[0])
        if count < 2 or metric.reduce(*values) is None:
            continue
        drawn = np.random.default_rng(0).integers(count, size=(NUM_RESAMPLES, count))
        resampled = (metric.reduce(*(v[images] for v in values)) for images in drawn)
        kept = [value for value in resampled if value is not None]
        found[metric.name] = np.percentile(kept, [2.5, 97.5]).tolist()
    return found


def validation_score(metrics: Mapping[str, Any], image_size: int) -> float | None:
    """Computes one number, larger for better, that chooses the best checkpoint.

    Args:
      metrics: result of `summarize`.
      image_size: pixels a side of the model image, which scale errors in pixels.

    Returns:
      The mean of the validation metrics that are not None; None if all are. An error in
      pixels counts as 1 - error / `image_size`.
    """
    scored = registry.at("validation").values()
    return formulas.mean(shares(metrics, scored, image_size))


def shares(
    values: Mapping[str, Any], metrics: Iterable[registry.Metric], image_size: int
) -> list[float]:
    """Converts the metrics that are not None to numbers that are 1 at best."""
    return [
        values[m.name] if m.better == "higher" else 1 - values[m.name] / image_size
        for m in metrics
        if values.get(m.name) is not None
    ]


def columns(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[np.ndarray]:
    """Returns the float64 columns `keys` of the rows that have all of them."""
    complete = [
        values
        for values in ([row.get(key) for key in keys] for row in rows)
        if all(value is not None for value in values)
    ]
    return list(np.array(complete, np.float64).reshape(-1, len(keys)).T)
