"""Finds the round field of view of a fundus photograph on its ground.

Cameras show the fundus as a circle, often cut off by the sensor's edges, on a ground
that is black, nearly black, or white. The ground is what continues the photograph's
corners. The border between ground and fundus also has other things on it: burned-in
text, the notch that marks the upright photograph, and parts of the fundus that are as
dark as the ground. A circle through most of the border tells them from the fundus.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from mtl_jax.data.geometry import Frame, Size, square, whole

# How a photograph is brought to the square model image.
Shape = Literal["fov", "stretch"]

# Long side of the reduced photograph that the field of view is looked for in, pixels.
_LONG_SIDE = 400
# Grey values: the lightest dark ground, the darkest white one, and the largest standard
# deviation of a ground, which JPEG and sensor noise stay below.
_DARK, _WHITE, _NOISE = 48, 230, 8
# What differs from the ground by this share of what the brightest tenth does stands out
# from it; the limits are grey values.
_SHARE, _LEAST, _MOST = 0.15, 6, 24
# A corner, as a share of the long side; the smallest field of view, of the area.
_CORNER, _SMALLEST = 1 / 50, 0.1
# Share of the border that a circle goes through, how far off it beside one pixel, in
# radii, and share of the fundus within it.
_CONSENSUS, _TOLERANCE, _CONTAINED = 0.4, 0.015, 0.95
# Share of what stands out from the ground that is in one piece.
_IN_ONE_PIECE = 0.9
# Circles that are tried, each on at most so many points of the border, and how often
# the best is fitted anew.
_TRIALS, _POINTS, _REFINEMENTS = 300, 400, 5


class FieldOfView(NamedTuple):
    """The part of a photograph that shows the fundus.

    Attributes:
      box: left, top, right, bottom in native pixels, of which the last two are
        exclusive; the whole photograph where no field of view is found.
      reason: why none is found; empty if one is.
      circle: x, y and radius of the circle in native pixels, where the left and upper
        edges of the photograph are 0; None where what stands out is not round.
    """

    box: tuple[int, int, int, int]
    reason: str = ""
    circle: tuple[float, float, float] | None = None

    def mask(self, size: Size, shrink: float = 1.0) -> np.ndarray:
        """Draws the field of view on a grid over its box.

        Args:
          size: (height, width) of the grid.
          shrink: factor on the radius of the circle.

        Returns:
          bool [height, width], all true without a circle.
        """
        left, top, right, bottom = self.box
        rows = top + (np.arange(size[0]) + 0.5) * (bottom - top) / size[0]
        columns = left + (np.arange(size[1]) + 0.5) * (right - left) / size[1]
        if self.circle is None:
            return np.ones(size, bool)
        x, y, radius = self.circle
        return np.hypot(rows[:, None] - y, columns - x) <= shrink * radius

    def contains(self, xy: npt.ArrayLike, margin: float = 0.0) -> bool:
        """Whether a point lies in the box and the circle.

        Args:
          xy: (x, y), with pixel centres at whole numbers.
          margin: how far outside the point may be, in pixels.
        """
        x, y = np.asarray(xy, np.float64) + 0.5
        left, top, right, bottom = self.box
        beyond = max(left - x, x - right, top - y, y - bottom)
        if self.circle is not None:
            beyond = max(beyond, math.dist((x, y), self.circle[:2]) - self.circle[2])
        return bool(beyond <= margin)


def frame_of(photograph: Image.Image, shape: Shape) -> Frame:
    """Chooses what of a photograph the model image shows.

    Args:
      photograph: RGB.
      shape: `stretch` shows the whole photograph, whatever its proportions, as the
        paper does. `fov` shows the smallest square around the field of view, which may
        reach beyond the photograph.
    """
    size = (photograph.height, photograph.width)
    if shape == "stretch":
        return whole(size)
    return square(find(photograph).box, size)


def find(photograph: Image.Image) -> FieldOfView:
    """Finds the field of view of an RGB photograph.

    Returns:
      The bounding box of the circle's part in the photograph; of what stands out from
      the ground if that is not round.
    """
    native = np.array(photograph.size)
    scale = min(1, _LONG_SIDE / native.max())
    width, height = size = np.maximum(1, np.rint(scale * native)).astype(int)
    # Every pixel is the mean of nine, which is faster than that of all and as good.
    nearest = Image.Resampling.NEAREST
    reduced = photograph.resize((3 * width, 3 * height), nearest).reduce(3)
    pixels = np.moveaxis(np.asarray(reduced), 2, 0).astype(np.float32, order="C")
    found, circle, reason = _find(pixels)
    if found is None:
        return FieldOfView((0, 0, *photograph.size), reason)
    enlarged = native / size
    left, top, right, bottom = np.rint(found * np.tile(enlarged, 2)).astype(int)
    box = int(left), int(top), int(right), int(bottom)
    if circle is None:
        return FieldOfView(box)
    x, y, radius = (float(v) for v in circle * [*enlarged, enlarged.mean()])
    return FieldOfView(box, circle=(x, y, radius))


def limits(image: np.ndarray, frame: Frame, shape: Shape) -> FieldOfView | None:
    """Finds the field of view in a model image, outside which nothing is to be found.

    Args:
      image: uint8 [H, W, 3] model image.
      frame: what it shows of its photograph.
      shape: how `frame` was chosen.

    Returns:
      The field of view in pixels of the model image, without what lies beyond the
      photograph. None in the shape `stretch`, which sets no limits, as the paper does.
    """
    if shape == "stretch":
        return None
    height, width = image.shape[:2]
    rows, columns = frame.native_size
    scale = np.array([width / frame.width, height / frame.height])
    low = np.maximum(np.rint(-scale * [frame.left, frame.top]), 0).astype(int)
    high = np.rint(scale * [columns - frame.left, rows - frame.top]).astype(int)
    left, top, right, bottom = *low, *np.clip(high, low + 1, [width, height])
    found = find(Image.fromarray(image[top:bottom, left:right]))
    x0, y0, x1, y1 = (int(edge) for edge in found.box + np.tile(low, 2))
    box = (x0, y0, x1, y1)
    if found.circle is None:
        return found._replace(box=box)
    x, y, radius = found.circle
    return found._replace(box=box, circle=(x + float(left), y + float(top), radius))


def _find(pixels: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """Finds box and circle in float32 [3, H, W]; None and a reason without a box."""
    ground = _ground(pixels)
    if ground is None:
        return None, None, "no corner shows a ground"
    difference = np.abs(pixels - ground[:, None, None]).max(0)
    bright = np.quantile(difference, 0.9)
    inside = difference > np.clip(_SHARE * bright, _LEAST, _MOST)
    # Text and noise are thin.
    inside = ndimage.binary_opening(inside, np.ones((3, 3), bool))
    labels, count = ndimage.label(inside)
    if not count:
        return None, None, "nothing stands out from the ground"
    areas = np.bincount(labels.ravel())[1:]
    fundus = labels == 1 + np.argmax(areas)
    rows, columns = np.flatnonzero(fundus.any(1)), np.flatnonzero(fundus.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
    if areas.max() < _SMALLEST * fundus.size:
        return None, None, "what stands out from the ground is too small"
    circle = _circle(_border(fundus))
    if circle is not None and _contained(fundus, circle) >= _CONTAINED:
        x, y, radius = circle
        around = np.array([x - radius, y - radius, x + radius, y + radius])
        far = np.tile(fundus.shape[::-1], 2)
        return np.clip(around, 0, far), np.array(circle), ""
    # Such as a close-up on a black canvas.
    if areas.max() >= _IN_ONE_PIECE * areas.sum():
        return box, None, ""
    return None, None, "what stands out from the ground is in pieces"


def _ground(pixels: np.ndarray) -> np.ndarray | None:
    """The colour [3] of the ground, which most of the flat corners have."""
    side = max(2, round(_CORNER * max(pixels.shape[1:])))
    ends = (slice(None, side), slice(-side, None))
    corners = [pixels[:, row, column].reshape(3, -1) for row in ends for column in ends]
    flat = [corner for corner in corners if corner.std(1).max() <= _NOISE]
    colours = np.array([np.median(corner, axis=1) for corner in flat]).reshape(-1, 3)
    for kind in (colours.max(1) <= _DARK, colours.min(1) >= _WHITE):
        if kind.any():
            return np.median(colours[kind], axis=0)
    return None


def _border(fundus: np.ndarray) -> np.ndarray:
    """Where rows and columns enter and leave the fundus, inside the photograph.

    Returns:
      [n, 2] points (x, y) = (column, row), where the corner of the photograph is 0.
    """
    points = []
    for mask, order in ((fundus, [0, 1]), (fundus.T, [1, 0])):
        lines = np.flatnonzero(mask.any(1))
        first = mask[lines].argmax(1)
        last = mask.shape[1] - mask[lines, ::-1].argmax(1)
        for ends in (first, last):
            point = np.stack([ends, lines + 0.5], axis=1)
            cut = (ends <= 1) | (ends >= mask.shape[1] - 1)
            points.append(point[~cut][:, order])
    return np.concatenate(points)


def _circle(points: np.ndarray) -> tuple[float, float, float] | None:
    """The circle (x, y, radius) through most points; None if it is not through many."""
    if len(points) < 30:
        return None
    # RandomState's streams are frozen for all versions of NumPy.
    triples = np.random.RandomState(0).randint(len(points), size=(_TRIALS, 3))
    circles = _through(points[triples], np.ones(triples.shape))
    some = points[:: -(-len(points) // _POINTS)]
    best = np.argmax(_closeness(some, circles).sum(1))
    circle = circles[best : best + 1]
    for _ in range(_REFINEMENTS):
        circle = _through(points[None], _closeness(points, circle))
    if (_closeness(points, circle) > 0).mean() < _CONSENSUS:
        return None
    x, y, radius = circle[0]
    return x, y, radius


def _closeness(points: np.ndarray, circles: np.ndarray) -> np.ndarray:
    """How close points are to circles [m, 3], from 1 to 0 at the tolerance, [m, n].

    Its square is Tukey's biweight.
    """
    distance = np.linalg.norm(points[None] - circles[:, None, :2], axis=2)
    radius = circles[:, 2:]
    return np.maximum(1 - ((distance - radius) / (_TOLERANCE * radius + 1)) ** 2, 0)


def _through(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The circles [m, 3] that fit sets of points [m, n, 2] best (Kasa, least squares).

    A circle is linear in a = (2 x, 2 y, r^2 - x^2 - y^2): a . (u, v, 1) = u^2 + v^2.
    """
    design = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=2)
    target = (points**2).sum(-1, keepdims=True)
    weights = weights[..., None]
    a = (np.linalg.pinv(weights * design) @ (weights * target))[..., 0]
    centres = a[:, :2] / 2
    square = np.maximum(a[:, 2] + (centres**2).sum(1), 0)
    return np.concatenate([centres, np.sqrt(square)[:, None]], axis=1)


def _contained(fundus: np.ndarray, circle: tuple[float, float, float]) -> float:
    """The share of the fundus that lies within a circle."""
    x, y, radius = circle
    rows, columns = np.ogrid[: fundus.shape[0], : fundus.shape[1]]
    distance = np.hypot(columns + 0.5 - x, rows + 0.5 - y)
    return float((distance[fundus] <= radius + 1).mean())
