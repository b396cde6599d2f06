"""Sizes and coordinates: native photograph to model image and back.

A point is (x, y) = (column, row) in pixels, with pixel centres at whole numbers: the
left edge of the image lies at x = -0.5. Photographs are stretched to a square, as in
the original authors' program. That program multiplies a point's coordinates by the
ratio of the sizes, as if pixels had their centres at their corners. `rescale_xy` offers
this convention for networks that it trained. Pictures are drawn by ours.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

PixelOrigin = Literal["centre", "corner"]


def resize_photograph(
    photograph: np.ndarray | Image.Image, size: tuple[int, int]
) -> np.ndarray:
    """Resizes a photograph, bilinear, to uint8 [H, W, 3].

    Args:
      photograph: uint8 [h, w, 3], or an RGB picture, which avoids a copy.
      size: (H, W).
    """
    return _resize(photograph, size, Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a uint8 [h, w] mask to `size` = (height, width), nearest neighbour."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def _resize(
    picture: np.ndarray | Image.Image,
    size: tuple[int, int],
    resampling: Image.Resampling,
) -> np.ndarray:
    if isinstance(picture, np.ndarray):
        if picture.shape[:2] == size:
            return picture
        picture = Image.fromarray(picture)
    # If the size is right already, Pillow returns the picture as it is.
    return np.asarray(picture.resize(size[::-1], resampling))


def rescale_xy(
    xy: npt.ArrayLike,
    from_size: tuple[int, int],
    to_size: tuple[int, int],
    origin: PixelOrigin = "centre",
) -> np.ndarray:
    """Converts points in an image to points in the same image at another size.

    Args:
      xy: [..., 2] points (x, y).
      from_size: (height, width) of the image that the points are given in.
      to_size: (height, width) of the image that they are converted to.
      origin: `centre` moves points with the image content: 0 is the first pixel's
        centre, and the image's edges coincide. `corner` maps 0 to 0, as the authors'
        program does.

    Returns:
      float64 [..., 2] points.
    """
    scale = np.array([to_size[1] / from_size[1], to_size[0] / from_size[0]])
    offset = 0.5 if origin == "centre" else 0.0
    return (np.asarray(xy, np.float64) + offset) * scale - offset
