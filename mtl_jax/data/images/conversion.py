"""What readers convert with a loss, and how it is said once for many photographs."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_jax.errors import UserError

# Pixels a side of the smallest photograph. Smaller ones show too little.
MIN_SIZE = 32

CMYK_BY_PROFILE = "in CMYK {were} converted to RGB by the colour profile in the file"
CMYK_BY_FORMULA = (
    "in CMYK without a colour profile {were} converted to RGB by a plain formula, which"
    " may shift colours"
)


class Photograph(NamedTuple):
    """A photograph and what was converted to read it.

    Attributes:
      picture: with 8 bits per channel, loaded into memory.
      conversion: the kind of conversion, for `conversion_sentences`; empty if there was
        none.
      is_raw: whether the file holds the pixels as they are, so that its zeros are black
        ones.
    """

    picture: Image.Image
    conversion: str = ""
    is_raw: bool = False


def conversion_sentences(counts: Mapping[str, int]) -> list[str]:
    """Says what was converted, in one sentence for each kind of conversion.

    Args:
      counts: numbers of photographs by `Photograph.conversion`. Those without one are
        left out.
    """
    return [
        f"{count} photographs {kind.format(were='were')}."
        if count > 1
        else f"1 photograph {kind.format(were='was')}."
        for kind, count in sorted(counts.items())
        if kind
    ]


def reduce_to_8_bits(values: np.ndarray, bits: int) -> Photograph:
    """Scales a picture to 8 bits per channel: v * 255 / (2**bits - 1), rounded.

    Args:
      values: unsigned integers [H, W] or [H, W, 3], at most 2**bits - 1.
      bits: depth that the file declares, 9 to 16.
    """
    maximum = 2**bits - 1
    # 255 * v / maximum never lies halfway between two whole numbers.
    table = np.rint(np.arange(maximum + 1) * (255 / maximum)).astype(np.uint8)
    return Photograph(
        Image.fromarray(table[values]),
        f"of {bits} bits per channel {{were}} reduced to 8 bits",
    )


def check_depth(values: np.ndarray, bits: int, path: pathlib.Path) -> None:
    """Refuses values that need so few of their bits that the picture would be black.

    A picture of 8 bits that is stored with 16 is of this kind. A picture of zeros alone
    is not: it is black at every depth.

    Args:
      values: unsigned integers of any shape.
      bits: depth that the file declares, 9 to 16.
      path: path of the file, for the message.
    """
    maximum, largest = 2**bits - 1, int(values.max())
    if 0 < largest <= max(255, maximum >> 4):
        raise UserError(
            f"{path} claims {bits} bits per channel, but no value exceeds {largest} of "
            f"{maximum}; save it with the depth that its values have."
        )


def check_size(width: int, height: int, path: pathlib.Path) -> None:
    """Refuses a picture without pixels, or with more than a photograph has."""
    if min(width, height) < 1:
        raise UserError(f"{path} has no pixels; export it again.")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise too_large(path)


def too_large(path: pathlib.Path) -> UserError:
    """The error for a picture with more pixels than a photograph has."""
    return UserError(
        f"{path} claims over {Image.MAX_IMAGE_PIXELS:,} pixels, more than any fundus"
        " photograph; reduce it."
    )
