"""Photographs with the predicted and the annotated anatomy drawn on them.

Masks are drawn as contours, which leave the anatomy in view. Predictions are coloured
solid lines and a cross. Annotations are thinner white dashes on top of them and a ring.
A dark halo below every line keeps it readable on an orange fundus and on a pale disc.
"""

import functools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtl_jax import tasks
from mtl_jax.data import geometry
from mtl_jax.inference import outlines

TRUTH_COLOUR = (255, 255, 255)

_HALO = (0, 0, 0, 170)
_STRIP = (24, 24, 24)

# In pixels: limits of a picture's long side, and the gap between two on a sheet.
_SMALLEST, _LARGEST, _GAP = 512, 1024, 8

# Lines are drawn this many times larger and reduced, as PIL does not anti-alias them.
_SUPERSAMPLING = 3

# Polylines [lines, n, 2]: two marks for points, of radius one, and a line for legends.
_CROSS = np.array([[(-1, 0), (1, 0)], [(0, -1), (0, 1)]])
_TURN = np.linspace(0, 2 * np.pi, 33)
_RING = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=-1)[np.newaxis]
_DASH = np.array([[(-1.6, 0), (1.6, 0)]])


class _Mark(NamedTuple):
    """Polylines [n, 2] of points (x, y) in picture pixels, and how to draw them."""

    label: str
    colour: tuple[int, int, int]
    lines: list[np.ndarray]
    dashed: bool = False
    swatch: np.ndarray = _DASH


def draw(
    photograph: np.ndarray,
    found: Mapping[str, Any],
    truth: Mapping[str, Any],
    caption: str | None = None,
) -> np.ndarray:
    """Draws marks on a photograph, above a strip with their legend and a caption.

    If the long side of the photograph is below 512 pixels, it is enlarged by a whole
    factor; if it is above 1024, it is reduced to that. Contours are traced before they
    are scaled, and stay crisp.

    Args:
      photograph: uint8 [H, W, 3] RGB.
      found: predictions by task: masks [H, W], non-zero inside, and points (x, y) in
        pixels of `photograph`. A class is not drawn, nor is None.
      truth: annotations by task, likewise.
      caption: text below the legend.

    Returns:
      uint8 [H', W', 3]: the photograph, and the strip below unless that is empty.

    Raises:
      ValueError: the photograph is not uint8 [H, W, 3], or a mask has another size.
    """
    if photograph.dtype != np.uint8 or photograph.shape[2:] != (3,):
        raise ValueError(f"not RGB bytes: {photograph.dtype} {photograph.shape}")
    size = _picture_size(photograph.shape[:2])
    sizes = (photograph.shape[:2], size)
    radius = max(size) / 45
    marks, annotated = [], []
    for task in tasks.of_kind("segmentation"):
        label, mask = f"predicted {task.name}", found.get(task.name)
        if mask is not None:
            marks.append(_Mark(label, task.rgb, _contours(mask, *sizes)))
        if truth.get(task.name) is not None:
            annotated += _contours(truth[task.name], *sizes)
    rings = []
    for task in tasks.of_kind("localisation"):
        label, xy = f"predicted {task.name}", found.get(task.name)
        if xy is not None:
            cross = geometry.rescale_xy(xy, *sizes) + radius * _CROSS
            marks.append(_Mark(label, task.rgb, [*cross], swatch=_CROSS))
        if truth.get(task.name) is not None:
            xy = geometry.rescale_xy(truth[task.name], *sizes)
            rings += [*(xy + 0.7 * radius * _RING)]
    if rings:
        # In the legend the ring and the dashes stand side by side, under one name.
        label = "" if annotated else "annotated"
        marks.append(_Mark(label, TRUTH_COLOUR, rings, swatch=_RING))
    if annotated:
        marks.append(_Mark("annotated", TRUTH_COLOUR, annotated, dashed=True))

    image = Image.fromarray(photograph).resize(size[::-1], Image.Resampling.BICUBIC)
    parts = [_ink(image, marks, max(size) / 256)]
    if marks or caption:
        parts.append(_strip(size[1], marks, caption))
    return np.concatenate([np.asarray(part) for part in parts])


def contact_sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lays out pictures row by row, each in the middle of its cell.

    Args:
      pictures: uint8 [H, W, 3] each, of any sizes; at least one.
      columns: pictures in a row.

    Returns:
      uint8 [H', W', 3], dark between the pictures. A cell fits the largest picture.

    Raises:
      ValueError: there is no picture, or `columns` is not positive.
    """
    if not pictures or columns < 1:
        raise ValueError(f"cannot lay {len(pictures)} pictures in {columns} columns")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    cell = np.max([picture.shape[:2] for picture in pictures], axis=0) + _GAP
    sheet = np.full((*(cell * (rows, columns) + _GAP), 3), _STRIP, np.uint8)
    for index, picture in enumerate(pictures):
        size = np.array(picture.shape[:2])
        top, left = cell * divmod(index, columns) + (cell + _GAP - size) // 2
        sheet[top : top + size[0], left : left + size[1]] = picture
    return sheet


def _picture_size(native_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the picture of a photograph of `native_size`."""
    factor = math.ceil(_SMALLEST / max(native_size))
    scale = factor if factor > 1 else min(1, _LARGEST / max(native_size))
    height, width = (max(1, round(side * scale)) for side in native_size)
    return height, width


def _contours(
    mask: np.ndarray, native_size: tuple[int, int], size: tuple[int, int]
) -> list[np.ndarray]:
    """Outlines of a mask of the photograph's size, scaled to `size`."""
    if np.shape(mask) != native_size:
        raise ValueError(f"mask is {np.shape(mask)}, photograph is {native_size}")
    return [
        geometry.rescale_xy(line, native_size, size) for line in outlines.trace(mask)
    ]


def _ink(image: Image.Image, marks: Sequence[_Mark], width: float) -> Image.Image:
    """Draws marks with lines `width` pixels wide; all halos first, then all lines."""
    if not any(mark.lines for mark in marks):
        return image
    # Only the part of the image around the marks is drawn on, which is faster.
    points = np.concatenate([line for mark in marks for line in mark.lines])
    far = np.subtract(image.size, 1)
    low = np.clip(points.min(axis=0) - 2 * width, 0, far).astype(int)
    high = np.clip(points.max(axis=0) + 2 * width + 2, low + 1, image.size).astype(int)
    layer = Image.new("RGBA", tuple(_SUPERSAMPLING * (high - low)))
    pen = ImageDraw.Draw(layer)
    for is_halo in (True, False):
        for mark in marks:
            thickness = (0.6 if mark.dashed else 1) + (0.9 if is_halo else 0)
            colour = _HALO if is_halo else (*mark.colour, 255)
            for line in mark.lines:
                for piece in _dashes(line, 4 * width) if mark.dashed else [line]:
                    _stroke(pen, piece - low, thickness * width, colour)
    overlay = layer.reduce(_SUPERSAMPLING)
    image.paste(overlay, tuple(low), overlay)
    return image


def _stroke(
    pen: ImageDraw.ImageDraw, line: np.ndarray, thickness: float, colour: tuple
) -> None:
    """Draws a polyline with round joints and ends on a supersampled layer."""
    # Pixel centres are at whole numbers at either scale.
    points = [tuple(point) for point in (line + 0.5) * _SUPERSAMPLING - 0.5]
    radius = round(thickness * _SUPERSAMPLING / 2)
    pen.line(points, colour, 2 * radius + 1, joint="curve")
    for end in (points[0], points[-1]):
        pen.circle(end, radius, colour)


def _dashes(line: np.ndarray, length: float) -> list[np.ndarray]:
    """Returns dashes along a polyline; they and the gaps are about `length` long."""
    arc = np.append(0, np.cumsum(np.hypot(*np.diff(line, axis=0).T)))
    # With a whole number of periods, the seam of a closed line does not show.
    count = max(2, round(arc[-1] / (2 * length)))
    at = np.add.outer(np.arange(count), np.linspace(0, 0.5, 9)) * arc[-1] / count
    return [*np.stack([np.interp(at, arc, axis) for axis in line.T], axis=-1)]


def _strip(width: int, marks: Sequence[_Mark], caption: str | None) -> Image.Image:
    """Draws the strip below a photograph: a legend of `marks`, then the caption."""
    text_size = max(11, round(width / 48))
    font = _font(text_size)
    line_height, margin = round(1.6 * text_size), text_size
    unit, gap = 0.6 * text_size, 0.5 * text_size
    x, y = margin, margin // 2
    swatches, texts = [], []
    for mark in marks:
        label = mark.label if mark.lines else f"{mark.label} (none)"
        reach = unit * np.ptp(mark.swatch[..., 0])
        needed = reach + gap + font.getlength(label)
        if x > margin and x + needed > width - margin:
            x, y = margin, y + line_height
        centre = (x + reach / 2, y + line_height / 2)
        swatches.append(mark._replace(lines=[*(centre + unit * mark.swatch)]))
        texts.append((x + reach + gap, y, label))
        x += needed + (2 * gap if label else 0)
    y += line_height if marks else 0
    for line in (caption or "").splitlines():
        fraction = 0.95 * (width - 2 * margin) / max(1, font.getlength(line))
        for part in textwrap.wrap(line, max(8, int(fraction * len(line)))):
            texts.append((margin, y, part))
            y += line_height
    blank = Image.new("RGB", (width, y + margin // 2), _STRIP)
    strip = _ink(blank, swatches, text_size / 7)
    pen = ImageDraw.Draw(strip)
    for x, y, text in texts:
        pen.text((x, y + line_height / 2), text, TRUTH_COLOUR, font, anchor="lm")
    return strip


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    # This font of matplotlib has Greek, accents and mathematical signs.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, size)
