"""Traces the outlines of masks for overlays and pages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from contourpy import contour_generator

from mtl_jax import tasks

# The marks on an image, by task, with pixel centres at whole numbers. A segmentation
# has closed outlines [n, 2] of points (x, y), which may repeat their first point at the
# end. A localisation has its point [2]. A task without marks is absent.
Marks = Mapping[str, Sequence[np.ndarray] | np.ndarray]


def marks_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Turns masks and points by task into marks; those that are None are left out."""
    draw = {"segmentation": trace, "localisation": np.asarray}
    return {
        task.name: draw[task.kind](found[task.name])
        for task in tasks.TASKS.values()
        if task.kind in draw and found.get(task.name) is not None
    }


def trace(mask: np.ndarray) -> list[np.ndarray]:
    """Traces a mask half-way between its pixels.

    Args:
      mask: [H, W], non-zero inside.

    Returns:
      Closed outlines [n, 2] of points (x, y).
    """
    inside = np.asarray(mask) != 0
    ys, xs = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(ys):
        return []
    # The bounding box is smaller, hence faster. Zeros around it close every outline.
    box = inside[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    generator = contour_generator(z=np.pad(box.astype(np.float32), 1))
    # pyrefly: ignore[bad-assignment]  # Arrays, as the default type of lines is.
    lines: list[np.ndarray] = generator.lines(0.5)
    return [line + np.array([xs[0] - 1, ys[0] - 1]) for line in lines]
