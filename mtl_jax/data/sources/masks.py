"""Files that hold an optic disc, an optic cup, or both, in the ways of public sets.

A `MaskFile` says which files, and how to read them. It is read where the record is
made, in another process.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image

from mtl_jax.data import images
from mtl_jax.errors import UserError

Reading = Literal["binary", "soft", "labels", "refuge", "classes", "contours"]

# Of four experts, two are half: 127 or 128 in a soft map, depending on its rounding.
_HALF = 127


@dataclasses.dataclass(frozen=True)
class MaskFile:
    """One annotation.

    Attributes:
      paths: the file; of contours, one file for each expert.
      reading: how its values are read, see `VALUES`.
    """

    paths: tuple[pathlib.Path, ...]
    reading: Reading = "binary"

    @property
    def name(self) -> str:
        """Its name in messages."""
        return " and ".join(map(str, self.paths))

    @property
    def has_both(self) -> bool:
        """Whether the file holds disc and cup."""
        return self.reading in ("refuge", "classes")

    def picture(self, size: tuple[int, ...]) -> Image.Image:
        """Reads the file, with its colours and transparency; fills contours with 1.

        Args:
          size: (height, width, ...) of the photograph, which only contours need.

        Raises:
          UserError: if a file cannot be read.
        """
        if self.reading != "contours":
            return images.open_mask(self.paths[0])
        shape = size[0], size[1]
        drawn = [fill_polygon(read_contour(path), shape) for path in self.paths]
        at_least_half = 2 * np.sum(drawn, axis=0) >= len(drawn)
        return Image.fromarray(at_least_half.astype(np.uint8))

    def values(self, size: tuple[int, int]) -> np.ndarray:
        """Reads the grey values of the file, uint8 [h, w]; see `picture`."""
        return images.grey_values(self.picture(size))

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Interprets values: uint8 [h, w], 0 outside, 1 inside.

        In a file with both structures 1 is the rim and 2 the cup.
        """
        return _LEVELS[self.reading](values)


def _refuge(values: np.ndarray) -> np.ndarray:
    disc, cup = images.disc_and_cup_masks(values)
    return disc + cup


_LEVELS: dict[Reading, Callable[[np.ndarray], np.ndarray]] = {
    "binary": images.binary_mask,
    "soft": lambda values: (values >= _HALF).astype(np.uint8),
    "labels": lambda values: (values > 0).astype(np.uint8),
    "refuge": _refuge,
    "classes": lambda values: values,
    "contours": lambda values: values,
}

# What the values of a file must be, by its reading.
VALUES: dict[Reading, str] = {
    "binary": "0 outside, 255 inside",
    "soft": "from 0 outside to 255 inside, of which half or more counts",
    "labels": "0 outside, any other inside",
    "refuge": "0 cup, 128 rim, 255 background",
    "classes": "0 outside, 1 rim, 2 cup",
    "contours": "lines of x and y in pixels of the photograph",
}


def read_contour(path: pathlib.Path) -> np.ndarray:
    """Reads a text file with x and y in each line, float64 [N, 2].

    Raises:
      UserError: if it has other contents, or fewer than three points.
    """
    try:
        lines = path.read_text().replace(",", " ").split("\n")
        points = np.array([line.split() for line in lines if line.strip()], np.float64)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no contour ({error}); it needs {VALUES['contours']}."
        ) from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise UserError(
            f"{path} is no contour of three points or more; it needs "
            f"{VALUES['contours']}."
        )
    return points


def fill_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Marks the pixels whose centres lie inside a closed polygon (even-odd rule).

    Args:
      points: [N, 2] corners (x, y), with pixel centres at whole numbers.
      size: (height, width).

    Returns:
      uint8 [height, width], 1 inside.
    """
    height, width = size
    # A row enters or leaves the polygon where it crosses an edge.
    crossings = np.zeros((height, width + 1), np.uint8)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        first, last = np.ceil(sorted((y0, y1))).clip(0, height).astype(int)
        if first < last:
            rows = np.arange(first, last)
            x = x0 + (rows - y0) * ((x1 - x0) / (y1 - y0))
            crossings[rows, np.ceil(x).clip(0, width).astype(int)] ^= 1
    return np.bitwise_xor.accumulate(crossings[:, :width], axis=1)
