"""Tells what is wrong with a photograph, before anybody reads a prediction off it.

Every doubt has the number that it rests on. The limits were measured on 505 labelled
photographs (IDRiD, Drishti-GS1, and 42 of mixed origin), on 109 close-ups of the disc
cut out of them, and on 119 pictures of other things. The usual values are those of the
501 that raise no doubt. No other pictures have tested the limits.

A photograph is looked at in a reduced picture of its field of view, 256 pixels on the
long side, so that all sizes take the same time. Scales in pixels refer to that picture.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from mtl_jax.data import field_of_view

NOT_A_FUNDUS = "not a fundus"

# Long side of the picture that is measured, and of the one that it is averaged from.
_SIDE, _SAMPLED = 256, 1024
# Part of the field's radius that is measured; the rim is dark or reflects.
_WITHIN = 0.94
# Least share of the picture within this part that can be measured by itself.
_LEAST_SHARE = 0.05
# Largest usual spread of the vCDR over flips. Of 86 test photographs of
# docs/model_card.md all are below, and both hazy ones that networks fail on above.
_SPREAD = 0.11
# Usual distances of the fovea from the disc's centre, in diameters of the disc: in 160
# of the photographs the middle nine tenths were 1.8 to 2.9, the largest was 3.1. Seven
# were below 1.7; in all of them the disc was drawn elsewhere or far too large.
_DISTANCES = 1.7, 3.5
# Largest usual width of the disc, in widths of a round field of view. Of 105 discs that
# people drew in such photographs (Drishti-GS1, IDRiD, and those of mixed origin) 104
# were 0.12 to 0.23 wide, and one 0.27. A bleeding that was taken for a disc was 0.31.
_WIDTH = 0.28
# Grey values: how far channels of the right order may seem in the wrong one; from
# where green is saturated; and the darkest surroundings that contrast is relative to.
_EQUAL, _SATURATED, _DARK = 4, 245, 8


class Measures(NamedTuple):
    """What is measured in the field of view of a photograph.

    Contrasts are those of green at a scale, in percent of its surroundings.

    Attributes:
      ordered: share of the pixels with red >= green >= blue, as blood and pigment
        leave them.
      redness: median share of red in a pixel's light.
      colours: width of the middle eight tenths of these shares.
      grain: contrast below one pixel.
      sharpness: contrast from one to two pixels, the width of most vessels.
      detail: median of that contrast's absolute value, which a few lines do not raise.
      texture: contrast from two to four pixels.
      greyness: contrast of red, relative to that of green, where this is neither noise
        nor a bright spot. Blood darkens green more than red, a shadow both alike.
      brightness: 95th percentile of a pixel's brightest channel.
      saturated: share of the pixels whose green is saturated.
      is_whole: whether the field of view is round, unlike in a close-up.
      width: long side of the field of view, in pixels of the photograph.
    """

    ordered: float
    redness: float
    colours: float
    grain: float
    sharpness: float
    detail: float
    texture: float
    greyness: float
    brightness: float
    saturated: float
    is_whole: bool
    width: int


class Doubt(NamedTuple):
    """A doubt about a photograph.

    Attributes:
      name: the doubt in two or three words.
      reason: what it rests on, with the number and what is usual.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        """The doubt and its reason."""
        return f"{self.name}: {self.reason}"


def doubts(
    photograph: np.ndarray,
    disc: np.ndarray | None,
    fovea: np.ndarray | None = None,
    vcdr_spread: float | None = None,
) -> list[Doubt]:
    """Lists the doubts about a photograph; none if it is good.

    Args:
      photograph: uint8 [H, W, 3] RGB.
      disc: predicted mask of the optic disc, non-zero inside; None if the network does
        not look for discs.
      fovea: predicted (x, y) in pixels of the photograph; None if there is none.
      vcdr_spread: spread of the vertical cup-to-disc ratio over the members of an
        average; None for one network.

    Returns:
      A single doubt `NOT_A_FUNDUS`, or all others.
    """
    measured = measure(photograph)
    for describe in _OF_FUNDI:
        if reason := describe(measured):
            return [Doubt(NOT_A_FUNDUS, reason)]
    found = [
        Doubt(name, reason)
        for name, describe in _OF_QUALITY.items()
        if (reason := describe(measured))
    ]
    if disc is not None and not disc.any():
        found.insert(0, Doubt("no disc found", "no pixel of probability 0.5 or more"))
    if disc is not None and measured.is_whole:
        width = _diameter(disc) / measured.width
        if width > _WIDTH:
            reason = (
                f"the disc is {width:.2f} times as wide as the field of view, usual "
                "0.12-0.23; it may be something else"
            )
            found.append(Doubt("implausible", reason))
    if disc is not None and disc.any() and fovea is not None:
        diameters = _distance(disc, fovea)
        if not _DISTANCES[0] <= diameters <= _DISTANCES[1]:
            reason = (
                f"the fovea is {diameters:.1f} disc diameters from the disc, usual "
                "1.8-3.1; one of them is something else"
            )
            found.append(Doubt("implausible", reason))
    if vcdr_spread is not None and vcdr_spread > _SPREAD:
        reason = f"the vCDR varies by {vcdr_spread:.2f} with the members, usual 0-0.11"
        found.append(Doubt("unsure", reason))
    return found


def _diameter(disc: np.ndarray) -> float:
    """Diameter in pixels of a round disc of the same area."""
    return 2 * math.sqrt(np.count_nonzero(disc) / math.pi)


def _distance(disc: np.ndarray, fovea: np.ndarray) -> float:
    """Distance of the fovea from the disc's centre, in diameters of a round disc."""
    ys, xs = np.nonzero(disc)
    return math.dist(fovea, (xs.mean(), ys.mean())) / _diameter(disc)


def measure(photograph: np.ndarray) -> Measures:
    """Measures a uint8 [H, W, 3] photograph of any size."""
    pixels, inside, is_whole, width = _field(photograph)
    # What is left of a circle that is cut off nearly whole.
    if inside.mean() < _LEAST_SHARE:
        inside = np.ones_like(inside)
    red, green, blue = pixels[:, inside]
    ordered = (red >= green - _EQUAL) & (green >= blue - _EQUAL)
    redness = red / (red + green + blue + 1)
    low, middle, high = np.quantile(redness, [0.1, 0.5, 0.9])
    grain, fine, texture = _bands(pixels[1], (0, 1, 2, 4))[:, inside]
    (fine_red,) = _bands(pixels[0], (1, 2))[:, inside]
    detail = np.median(np.abs(fine))
    # Between noise and the edges of bright spots.
    lines = (np.abs(fine) > 1.5 * detail) & (np.abs(fine) < 6 * detail)
    squares = (fine[lines] ** 2).sum()
    return Measures(
        ordered=float(ordered.mean()),
        redness=float(middle),
        colours=float(high - low),
        grain=float(grain.std()),
        sharpness=float(fine.std()),
        detail=float(detail),
        texture=float(texture.std()),
        greyness=float((fine_red * fine)[lines].sum() / squares) if squares else 0.0,
        brightness=float(np.quantile(pixels.max(0)[inside], 0.95)),
        saturated=float((green >= _SATURATED).mean()),
        is_whole=is_whole,
        width=width,
    )


def _field(photograph: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, int]:
    """Cuts out the field of view.

    Returns:
      float32 [3, h, w]; bool [h, w], where to measure; whether the field is round; and
      its long side in pixels of the photograph.
    """
    step = max(1, max(photograph.shape) // _SAMPLED)
    sampled = Image.fromarray(np.ascontiguousarray(photograph[::step, ::step]))
    field = field_of_view.find(sampled)
    left, top, right, bottom = field.box
    width, height = right - left, bottom - top
    scale = _SIDE / max(width, height)
    # Small photographs are enlarged, so that scales mean the same in all of them.
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    size = max(1, round(scale * width)), max(1, round(scale * height))
    reduced = sampled.resize(size, resampling, field.box)
    pixels = np.moveaxis(np.asarray(reduced), 2, 0).astype(np.float32, order="C")
    is_round, long_side = field.circle is not None, step * max(width, height)
    return pixels, field.mask(size[::-1], _WITHIN), is_round, long_side


def _bands(channel: np.ndarray, scales: tuple[int, ...]) -> np.ndarray:
    """Contrasts between consecutive scales [pixels] of a channel [h, w], in percent."""

    def blurred(scale: int) -> np.ndarray:
        return ndimage.gaussian_filter(channel, scale, truncate=3)

    levels = [blurred(scale) if scale else channel for scale in scales]
    return 100 * -np.diff(levels, axis=0) / np.maximum(blurred(8), _DARK)


def _order(of: Measures) -> str:
    if of.ordered >= 0.75:
        return ""
    return (
        f"only {of.ordered:.0%} of it has more red than green and more green than "
        "blue, usual 90-100%"
    )


def _redness(of: Measures) -> str:
    if 0.38 <= of.redness <= 0.88:
        return ""
    return f"red is {of.redness:.2f} of its light, usual 0.42-0.79"


def _colours(of: Measures) -> str:
    if of.colours <= 0.27:
        return ""
    return f"its colours differ by {of.colours:.2f}, usual 0.03-0.22"


def _texture(of: Measures) -> str:
    if of.texture <= 7:
        return ""
    return f"its texture has a contrast of {of.texture:.1f}%, usual 1.1-6.2%"


def _flatness(of: Measures) -> str:
    if of.detail >= 0.15:
        return ""
    return f"most of it is flat, with a detail of {of.detail:.2f}%, usual 0.3-1.7%"


def _noise(of: Measures) -> str:
    ratio = of.grain / max(of.texture, 1e-3)
    if ratio <= 4:
        return ""
    return f"it is noise: {ratio:.1f} times as much grain as texture, usual 0.5-1.8"


def _shadows(of: Measures) -> str:
    # Fur, skin and wood are less red than a fundus, and rough. Pale photographs whose
    # lines are grey are not; reflections make those of red photographs grey.
    if of.redness >= 0.5 or of.texture <= 2 or of.greyness <= 0.66:
        return ""
    return (
        f"its lines are shadows, {of.greyness:.2f} times as dark in red as in green, "
        "where those of such a pale fundus are blood, usual 0.3-0.65"
    )


def _darkness(of: Measures) -> str:
    if of.brightness >= 80:
        return ""
    return f"its brightness is {of.brightness:.0f} of 255, usual 84-255"


def _saturation(of: Measures) -> str:
    if of.saturated <= 0.06:
        return ""
    return f"green is saturated in {of.saturated:.0%} of it, usual 0-3%"


def _blur(of: Measures) -> str:
    # What a close-up shows is larger, and hence smoother.
    if of.sharpness >= (0.95 if of.is_whole else 0.5):
        return ""
    return f"its sharpness is {of.sharpness:.1f}%, usual 1.0-4.5%"


_Describe = Callable[[Measures], str]

# The reason for each doubt; empty if there is none.
_OF_FUNDI: tuple[_Describe, ...] = (
    _order,
    _redness,
    _colours,
    _texture,
    _flatness,
    _noise,
    _shadows,
)
_OF_QUALITY: dict[str, _Describe] = {
    "underexposed": _darkness,
    "overexposed": _saturation,
    "blurred": _blur,
}
