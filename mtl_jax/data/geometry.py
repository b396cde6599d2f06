"""Sizes and coordinates: native photograph to model image and back.

A point is (x, y) = (column, row) in pixels, with pixel centres at whole numbers: the
left edge of the image lies at x = -0.5. Photographs are stretched to a square, as in
the original authors' program.
"""

import numpy as np
from PIL import Image


def resize_photograph(photograph: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a uint8 [H, W, 3] photograph to `size` = (height, width), bilinear."""
    height, width = size
    if photograph.shape[:2] == (height, width):
        return photograph
    image = Image.fromarray(photograph)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a uint8 [H, W] mask to `size` = (height, width), nearest neighbour."""
    height, width = size
    if mask.shape == (height, width):
        return mask
    image = Image.fromarray(mask)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def rescale_xy(
    xy: np.ndarray, from_size: tuple[int, int], to_size: tuple[int, int]
) -> np.ndarray:
    """Carries points from an image of one size to the same image at another.

    Args:
      xy: [..., 2] points (x, y).
      from_size: (height, width) of the image the points are given in.
      to_size: (height, width) of the image they are wanted in.

    Returns:
      float64 [..., 2] points.
    """
    scale = np.array([to_size[1] / from_size[1], to_size[0] / from_size[0]])
    return (np.asarray(xy, np.float64) + 0.5) * scale - 0.5
