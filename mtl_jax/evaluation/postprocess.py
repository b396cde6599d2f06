"""From maps of logits to masks, a fovea and a vertical cup-to-disc ratio.

A point is (x, y) = (column, row) with pixel centres at whole numbers, as in
`mtl_jax.data.geometry`.

References:
  Pascal et al., Multi-task deep learning for glaucoma detection from color fundus
  images, Scientific Reports 12:12361, 2022.
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020, whose
  published evaluation program fixes the height of a mask and the vCDR.
"""

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.special import expit

# Keeps the ratio finite without a disc; the evaluation program's own constant.
_EPSILON = 1e-7

_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keeps the largest connected component of a mask.

    Pixels that touch at an edge or a corner belong together (8-connectivity). Of
    components of equal size the one that comes first in reading order stays.

    Args:
      mask: [H, W], non-zero inside.

    Returns:
      uint8 [H, W], 1 inside; all zero if `mask` is empty.
    """
    labels, count = ndimage.label(np.asarray(mask) != 0, structure=_EIGHT_NEIGHBOURS)
    if count == 0:
        return np.zeros(labels.shape, np.uint8)
    # Labels are given out in reading order, and argmax returns the first maximum.
    areas = np.bincount(labels.ravel())[1:]
    return (labels == 1 + np.argmax(areas)).astype(np.uint8)


def segment(logits: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """The mask that a map of logits stands for (Pascal et al. 2022).

    Pixels of probability >= 0.5 are inside; then the largest component stays. The
    probabilities are resized rather than the mask, so that the outline at native size
    is as smooth as the map and not a staircase of model pixels.

    Args:
      logits: float [H, W].
      size: (height, width) of the mask wanted; None keeps the size of `logits`.

    Returns:
      uint8 mask, 1 inside, of shape `size`.
    """
    probability = expit(np.asarray(logits, np.float32))
    if size is not None and probability.shape != tuple(size):
        height, width = size
        probability = np.asarray(
            Image.fromarray(probability).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
    return largest_component(probability >= 0.5)


def centre_of_mass(logits: np.ndarray) -> tuple[float, float]:
    """The fovea that a map of logits stands for (Pascal et al. 2022).

    Every pixel counts with its probability, with no clean-up.

    Args:
      logits: float [H, W].

    Returns:
      (x, y) in pixels of the map; the centre of the image if all mass is zero.
    """
    mass = expit(np.asarray(logits, np.float64))
    height, width = mass.shape
    total = mass.sum()
    if total == 0:
        return (width - 1) / 2, (height - 1) / 2
    x = mass.sum(axis=0) @ np.arange(width) / total
    y = mass.sum(axis=1) @ np.arange(height) / total
    return float(x), float(y)


def mask_height(mask: np.ndarray) -> int:
    """The largest number of mask pixels in any one column (REFUGE evaluation).

    Args:
      mask: [H, W], non-zero inside.

    Returns:
      The height in pixels, holes not counted.
    """
    return int(np.count_nonzero(mask, axis=0).max(initial=0))


def vertical_cdr(disc: np.ndarray, cup: np.ndarray) -> float:
    """The vCDR, cup height / (disc height + 1e-7) (REFUGE evaluation).

    Args:
      disc: [H, W], non-zero inside the optic disc.
      cup: [H, W], non-zero inside the optic cup.

    Returns:
      The ratio; 0 without a cup, and very large for a cup without a disc.
    """
    return mask_height(cup) / (mask_height(disc) + _EPSILON)
