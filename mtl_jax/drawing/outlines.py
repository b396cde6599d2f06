"""Outlines of masks: what overlays and pages draw of a segmentation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from contourpy import contour_generator


class Marks(NamedTuple):
    """What is to be drawn on a photograph; pixel centres are at whole numbers.

    Attributes:
      disc: closed outlines [n, 2] of points (x, y); the first point may come again at
        the end. None at all where no optic disc was found or annotated.
      cup: likewise.
      fovea_xy: [2], or None.
    """

    disc: Sequence[np.ndarray]
    cup: Sequence[np.ndarray]
    fovea_xy: np.ndarray | None


def trace(mask: np.ndarray | None) -> list[np.ndarray]:
    """Closed outlines [n, 2] of a mask, (x, y), half-way between its pixels.

    Args:
      mask: [H, W], non-zero inside; None for no outline.
    """
    if mask is None:
        return []
    inside = np.asarray(mask) != 0
    ys, xs = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(ys):
        return []
    # The bounding box traces faster; the zeros around it close every outline.
    box = inside[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    lines = contour_generator(z=np.pad(box.astype(np.float32), 1)).lines(0.5)
    return [line + (xs[0] - 1, ys[0] - 1) for line in lines]
