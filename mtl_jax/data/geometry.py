"""Sizes and coordinates: native photograph to model image and back.

A point is (x, y) = (column, row) in pixels, with pixel centres at whole numbers: the
left edge of the image lies at x = -0.5. The original authors' program multiplies a
point's coordinates by the ratio of the sizes, as if pixels had their centres at their
corners. `rescale_xy` offers this convention for networks that it trained. Pictures are
drawn by ours.

A `Frame` is the box of a photograph that its model image shows. Everything that goes
from a photograph to the network, or comes back, passes through it.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

PixelOrigin = Literal["centre", "corner"]
Size = tuple[int, int]


class Frame(NamedTuple):
    """The box of a photograph that its model image shows, in native pixels.

    The box may reach beyond the photograph; the model image is black there.

    Attributes:
      left: first column of the box.
      top: first row of the box.
      width: of the box.
      height: of the box.
      native_size: (height, width) of the photograph.
    """

    left: int
    top: int
    width: int
    height: int
    native_size: Size

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        return self[:4]


def whole(size: Size) -> Frame:
    """The frame of a whole photograph of this (height, width), stretched to a square.

    An image is its own photograph in this frame.
    """
    return Frame(0, 0, size[1], size[0], size)


def square(box: tuple[int, int, int, int], native_size: Size) -> Frame:
    """The smallest square frame around a box, with the box in its middle.

    Args:
      box: left, top, right, bottom; the last two are exclusive.
      native_size: (height, width) of the photograph.
    """
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    left -= (side - (right - left)) // 2
    top -= (side - (bottom - top)) // 2
    return Frame(left, top, side, side, native_size)


def photograph_to_model(
    photograph: np.ndarray | Image.Image, frame: Frame, size: Size
) -> np.ndarray:
    """Makes the model image of a photograph, black outside it.

    Args:
      photograph: uint8 [h, w, 3], or an RGB picture.
      frame: what is shown of it.
      size: (H, W) of the model image.

    Returns:
      uint8 [H, W, 3].
    """
    return resize_photograph(_cut(photograph, frame), size)


def mask_to_model(mask: np.ndarray, frame: Frame, size: Size) -> np.ndarray:
    """Makes the uint8 [H, W] mask of a model image, zero outside the photograph."""
    return resize_mask(np.asarray(_cut(mask, frame)), size)


def _cut(picture: np.ndarray | Image.Image, frame: Frame) -> np.ndarray | Image.Image:
    """The frame's box of a picture, with zeros outside the picture."""
    if frame == whole(frame.native_size):
        return picture
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    left, top, width, height = frame.box
    return picture.crop((left, top, left + width, top + height))


def picture_to_native(picture: np.ndarray, frame: Frame) -> np.ndarray:
    """Brings a model image, or a map of it, back to the photograph's size.

    Args:
      picture: uint8 [H, W, 3] or float32 [H, W].
      frame: what it shows of the photograph.

    Returns:
      The same of the photograph's size, zero where the frame does not reach.
    """
    left, top, width, height = frame.box
    shown = _resize(picture, (height, width), Image.Resampling.BILINEAR)
    if frame == whole(frame.native_size):
        return shown
    rows, columns = frame.native_size
    native = np.zeros((rows, columns, *picture.shape[2:]), picture.dtype)
    y, x = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    native[y, x] = shown[max(-top, 0) : rows - top, max(-left, 0) : columns - left]
    return native


def xy_to_model(
    xy: npt.ArrayLike, frame: Frame, size: Size, origin: PixelOrigin = "centre"
) -> np.ndarray:
    """Converts points [..., 2] of a photograph to those of its model image, float64.

    Args:
      xy: points (x, y) in pixels of the photograph.
      frame: what the model image shows.
      size: (height, width) of the model image.
      origin: see `rescale_xy`.
    """
    inside = np.asarray(xy, np.float64) - (frame.left, frame.top)
    return rescale_xy(inside, (frame.height, frame.width), size, origin)


def xy_to_native(
    xy: npt.ArrayLike, frame: Frame, size: Size, origin: PixelOrigin = "centre"
) -> np.ndarray:
    """Converts points [..., 2] of a model image back, see `xy_to_model`."""
    inside = rescale_xy(xy, size, (frame.height, frame.width), origin)
    return inside + (frame.left, frame.top)


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
