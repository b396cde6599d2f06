"""Outlines of masks, as overlays and pages draw them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from contourpy import contour_generator


class Marks(NamedTuple):
    """Disc, cup and fovea of a photograph. Pixel centres are at whole numbers.

    Attributes:
      disc: closed outlines [n, 2] of points (x, y), each with or without its first
        point again at the end. The list is empty if there is no disc.
      cup: the same for the optic cup.
      fovea_xy: [2]; None if there is no fovea.
    """

    disc: Sequence[np.ndarray]
    cup: Sequence[np.ndarray]
    fovea_xy: np.ndarray | None


def trace(mask: np.ndarray | None) -> list[np.ndarray]:
    """Traces a mask half-way between its pixels.

    Args:
      mask: [H, W], non-zero inside; None gives no outline.

    Returns:
      Closed outlines [n, 2] of points (x, y).
    """
    if mask is None:
        return []
    inside = np.asarray(mask) != 0
    ys, xs = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(ys):
        return []
    # The bounding box is smaller, hence faster. Zeros around it close every outline.
    box = inside[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    lines = contour_generator(z=np.pad(box.astype(np.float32), 1)).lines(0.5)
    return [line + (xs[0] - 1, ys[0] - 1) for line in lines]
