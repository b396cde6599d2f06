"""Draws colour fundus photographs of random eyes, with exact annotations.

Layers are drawn from back to front: the retina, darkened by its own structures, then
the disc, then the vessels. The camera exposes the result. Lengths are fractions of the
frame's shorter side.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mtl_jax.data.synthetic.anatomy import Anatomy, Haemorrhage, Wedge, sample_anatomy
from mtl_jax.data.synthetic.camera import (
    EVALUATION_CAMERA,
    TRAINING_CAMERA,
    Camera,
    expose,
)
from mtl_jax.data.synthetic.vessels import FIBRE_BEND, FIBRE_START, sample_vessels

__all__ = [
    "EVALUATION_CAMERA",
    "TRAINING_CAMERA",
    "Camera",
    "Frame",
    "Fundus",
    "draw_masks",
    "make_frame",
    "render",
]

# RGB in [0, 1].
RETINA = np.array([0.72, 0.36, 0.18], np.float32)
RIM = np.array([0.92, 0.62, 0.38], np.float32)
CUP = np.array([0.99, 0.87, 0.66], np.float32)
ATROPHY = np.array([0.84, 0.62, 0.42], np.float32)

# Absorbance (natural log) per unit of a layer in R, G, B.
CHOROID = (0.16, 0.22, 0.22)
MACULA = (0.22, 0.42, 0.40)
FOVEA = (0.10, 0.25, 0.20)
FIBRE_SHEEN = (-0.15, -0.30, -0.34)
BLOOD = (0.42, 1.05, 0.95)

# Standard deviations of the dark spots.
MACULA_RADIUS = 0.060
FOVEA_RADIUS = 0.016
# Width of the soft edge on either side of an outline.
DISC_SOFTNESS = 0.006
CUP_SOFTNESS = 0.010
ATROPHY_SOFTNESS = 0.008
TYPICAL_DISC_RADIUS = 0.09

# Noise: cells along the frame's side, with weights for the choroid.
MOTTLING = ((5, 0.35), (14, 0.20), (60, 0.22))
CHOROIDAL_VESSELS = 18
PATCHES = 50

# The nerve fibre layer is thickest in this direction, above and below the fovea's. It
# thins over this width [rad], and over this distance from the disc.
THICKEST_FIBRES = math.radians(72)
FIBRE_LOBE = math.radians(32)
FIBRE_REACH = 0.32
FIBRE_STRIPES = 90
# Where the layer is lost, the pigment below makes the retina darker by this much.
DEFECT_DARKNESS = 1.0

# Density from 0 to 255.
ARTERY_DENSITY = 165
ARTERY_REFLEX_DENSITY = 115
VEIN_DENSITY = 210
HAEMORRHAGE_DENSITY = 255
# Smaller images have their vessels drawn at this size or above, and then shrunk.
VESSEL_CANVAS = 640


@dataclasses.dataclass(frozen=True)
class Fundus:
    """A photograph and its annotations.

    Attributes:
      photograph: uint8 [H, W, 3] RGB.
      disc_mask: uint8 [H, W], 1 inside the optic disc.
      cup_mask: uint8 [H, W], 1 inside the optic cup, which lies inside the disc.
      fovea_xy: (x, y) in pixels, pixel centres at whole numbers.
      glaucoma: 1 for glaucoma, 0 for healthy.
    """

    photograph: np.ndarray
    disc_mask: np.ndarray
    cup_mask: np.ndarray
    fovea_xy: tuple[float, float]
    glaucoma: int


@dataclasses.dataclass(frozen=True)
class Frame:
    """The pixel grid in front of an eye.

    Attributes:
      size: (height, width) in pixels.
      anatomy: the eye.
      x: [H, W] eye-frame coordinate of every pixel's centre.
      y: [H, W] likewise.
      disc_level: [H, W], below 1 inside the disc.
      cup_level: [H, W], below 1 inside the cup.
    """

    size: tuple[int, int]
    anatomy: Anatomy
    x: np.ndarray
    y: np.ndarray
    disc_level: np.ndarray
    cup_level: np.ndarray

    @property
    def unit(self) -> int:
        """Pixels of the shorter side."""
        return min(self.size)

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Pixel coordinates (x, y) of eye-frame points [..., 2]."""
        height, width = self.size
        mirrored = (points - np.array(self.anatomy.gaze_point)) * (self.anatomy.side, 1)
        return mirrored * self.unit + (width / 2 - 0.5, height / 2 - 0.5)


def render(
    rng: np.random.Generator, size: tuple[int, int], camera: Camera, glaucoma: bool
) -> Fundus:
    """Draws one photograph of a random eye.

    The same generator state gives the same eye at every size.

    Args:
      rng: source of all randomness.
      size: (height, width) in pixels.
      camera: what takes the photograph.
      glaucoma: which population the eye comes from.

    Returns:
      The photograph with exact masks, fovea and label.
    """
    anatomy = sample_anatomy(rng, camera.framing, glaucoma)
    frame = make_frame(anatomy, size)
    tissue = _draw_retina(rng, frame)
    tissue = _draw_atrophy(rng, frame, tissue)
    tissue = _draw_disc(rng, frame, tissue)
    tissue = tissue * _transmitted([(BLOOD, _draw_blood(rng, frame))])
    disc_mask, cup_mask = draw_masks(frame)
    x, y = frame.to_pixels(np.array(anatomy.fovea))
    return Fundus(
        photograph=expose(rng, camera, tissue),
        disc_mask=disc_mask,
        cup_mask=cup_mask,
        fovea_xy=(float(x), float(y)),
        glaucoma=int(glaucoma),
    )


def make_frame(anatomy: Anatomy, size: tuple[int, int]) -> Frame:
    """Lays a pixel grid of `size` = (height, width) over an eye."""
    height, width = size
    unit = min(size)
    columns = (np.arange(width, dtype=np.float32) - (width / 2 - 0.5)) / unit
    rows = (np.arange(height, dtype=np.float32) - (height / 2 - 0.5)) / unit
    x, y = np.meshgrid(
        anatomy.side * columns + np.float32(anatomy.gaze_point[0]),
        rows + np.float32(anatomy.gaze_point[1]),
    )
    return Frame(size, anatomy, x, y, *anatomy.levels(x, y))


def draw_masks(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Disc and cup masks, uint8 [H, W], sampled at the pixels' centres."""
    disc, cup = frame.disc_level < 1, frame.cup_level < 1
    return disc.astype(np.uint8), cup.astype(np.uint8)


def _draw_retina(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Pigment, choroid, nerve fibres and macula, [H, W, 3] in [0, 1]."""
    pigment = _tint(rng, 0.10, 0.08)
    fovea_x, fovea_y = frame.anatomy.fovea
    squared = (frame.x - fovea_x) ** 2 + (frame.y - fovea_y) ** 2
    macula = np.exp(-squared / (2 * MACULA_RADIUS**2)) * rng.uniform(0.8, 1.3)
    pit = np.exp(-squared / (2 * FOVEA_RADIUS**2)) * rng.uniform(0.6, 1.3)
    layers = (
        (CHOROID, _draw_choroid(rng, frame)),
        (FIBRE_SHEEN, _draw_fibres(rng, frame)),
        (MACULA, macula),
        (FOVEA, pit),
    )
    return RETINA * pigment * _transmitted(layers)


def _draw_choroid(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Mottling, and dark choroidal vessels, which some eyes show."""
    mottling = sum(
        weight * _noise(rng, cells, frame.size) for cells, weight in MOTTLING
    )
    vessels = np.abs(_noise(rng, CHOROIDAL_VESSELS, frame.size))
    return mottling - rng.uniform(0, 0.7) * np.minimum(vessels, 1)


def _draw_fibres(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Sheen of the nerve fibre layer, brightest above and below the disc."""
    r, angle, below = _fibre_coordinates(frame)
    lobes = np.exp(-(((angle - THICKEST_FIBRES) / FIBRE_LOBE) ** 2))
    fading = np.exp(-np.maximum(r - FIBRE_START, 0) / FIBRE_REACH)
    grain = rng.normal(0, 1, (2, FIBRE_STRIPES))
    bins = np.linspace(0, math.radians(200), grain.shape[1])
    stripes = np.where(
        below, np.interp(angle, bins, grain[0]), np.interp(angle, bins, grain[1])
    )
    thickness = rng.uniform(0.8, 1.2)
    if frame.anatomy.glaucoma:
        thickness *= rng.uniform(0.75, 1.0)
    sheen = thickness * lobes * fading * (1 + 0.10 * stripes)
    for wedge in frame.anatomy.wedges:
        lost = wedge.depth * _draw_wedge(wedge, r, angle, below)
        sheen = sheen * (1 - lost) - DEFECT_DARKNESS * lost
    return sheen.astype(np.float32)


def _draw_wedge(
    wedge: Wedge, r: np.ndarray, angle: np.ndarray, below: np.ndarray
) -> np.ndarray:
    """1 in the middle of a nerve-fibre-layer defect, 0 outside."""
    apart = np.abs(angle - abs(wedge.angle)) / wedge.half_width
    across = _smooth_step((1.25 - apart) / 0.5)
    along = _smooth_step((wedge.length - r) / 0.12)
    return across * along * (below == (wedge.angle > 0))


def _fibre_coordinates(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance from the disc, fibre angle at the disc [rad], and whether below."""
    tilt = frame.anatomy.fovea_angle()
    x = math.cos(tilt) * frame.x + math.sin(tilt) * frame.y
    y = math.cos(tilt) * frame.y - math.sin(tilt) * frame.x
    r = np.hypot(x, y)
    bent = FIBRE_BEND * np.maximum(r - FIBRE_START, 0)
    return r, np.abs(np.arctan2(y, x)) + bent, y > 0


def _draw_atrophy(
    rng: np.random.Generator, frame: Frame, tissue: np.ndarray
) -> np.ndarray:
    """A pale patchy crescent on the disc's temporal side, in some eyes."""
    if frame.anatomy.atrophy is None:
        return tissue
    patches = _noise(rng, PATCHES, frame.size)
    inside = _inside(frame.anatomy.atrophy.level(frame.x, frame.y), ATROPHY_SOFTNESS)
    return _blend(tissue, ATROPHY, inside * np.clip(0.42 + 0.2 * patches, 0, 1))


def _draw_disc(
    rng: np.random.Generator, frame: Frame, tissue: np.ndarray
) -> np.ndarray:
    """The disc with its rim and paler cup."""
    pallor = _tint(rng, 0.03, 0.035)
    contrast = rng.uniform(0.70, 1.0)
    mottling = 1 + 0.03 * _noise(rng, PATCHES, frame.size)[..., None]
    disc = _inside(frame.disc_level, DISC_SOFTNESS)
    cup = _inside(frame.cup_level, CUP_SOFTNESS)
    tissue = _blend(tissue, RIM * pallor * mottling, 0.95 * disc)
    return _blend(tissue, CUP * pallor * mottling, contrast * cup)


def _draw_blood(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Blood in vessels and haemorrhages, [H, W] from 0 to 1."""
    height, width = frame.size
    scale = max(1, math.ceil(VESSEL_CANVAS / frame.unit))
    canvas = Image.new("L", (width * scale, height * scale))
    draw = ImageDraw.Draw(canvas)
    for vessel in sample_vessels(rng, frame.anatomy.fovea):
        centre = (frame.to_pixels(vessel.points) + 0.5) * scale
        widths = np.maximum(vessel.widths * frame.unit * scale, 1.0)
        density = ARTERY_DENSITY if vessel.is_artery else VEIN_DENSITY
        draw.polygon(_ribbon(centre, widths), fill=density)
        if vessel.is_artery and widths[0] > 4:
            # Arteries show a bright reflex along their axis.
            draw.polygon(_ribbon(centre, 0.3 * widths), fill=ARTERY_REFLEX_DENSITY)
    for splinter in frame.anatomy.haemorrhages:
        points, widths = _splinter(frame.anatomy, splinter)
        centre = (frame.to_pixels(points) + 0.5) * scale
        widths = widths * frame.unit * scale
        draw.polygon(_ribbon(centre, widths), fill=HAEMORRHAGE_DENSITY)
    return np.asarray(canvas.reduce(scale), np.float32) / 255


def _ribbon(centre: np.ndarray, widths: np.ndarray) -> list[float]:
    """Outline x, y, x, y, … of a band of varying width round a path [n, 2]."""
    across = np.empty_like(centre)
    across[1:] = np.diff(centre, axis=0)[:, ::-1] * (-1, 1)
    across[0] = across[1]
    across *= (0.5 * widths / np.hypot(*across.T))[:, None]
    return np.concatenate([centre + across, (centre - across)[::-1]]).ravel().tolist()


def _splinter(anatomy: Anatomy, splinter: Haemorrhage) -> tuple[np.ndarray, np.ndarray]:
    """Path [n, 2] and widths [n] of a flame-shaped haemorrhage across the margin."""
    margin = float(anatomy.disc.radius(np.array(splinter.angle)))
    r = margin + splinter.length * np.linspace(-0.2, 0.8, 9)
    direction = np.array([math.cos(splinter.angle), math.sin(splinter.angle)])
    widths = splinter.width * np.sin(np.linspace(0.3, math.pi - 0.1, 9))
    return r[:, None] * direction, widths


def _noise(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth noise of about unit variance with `cells` cells a side, at any size."""
    height, width = size
    grid = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _transmitted(
    layers: Sequence[tuple[tuple[float, float, float], np.ndarray]],
) -> np.ndarray:
    """Share of light that passes (absorbance, layer [H, W]) pairs, [H, W, 3]."""
    absorbances, maps = zip(*layers, strict=True)
    stacked = np.stack(maps, axis=-1).astype(np.float32)
    return np.exp(stacked @ -np.array(absorbances, np.float32))


def _tint(rng: np.random.Generator, brightness: float, warmth: float) -> np.ndarray:
    """Random factors on R, G, B, given the logarithms' standard deviations."""
    yellow_to_red = rng.normal(0, warmth) * np.array((0.0, 1.0, 1.3))
    return np.exp(rng.normal(0, brightness) + yellow_to_red).astype(np.float32)


def _blend(below: np.ndarray, above: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return below + (above - below) * cover[..., None]


def _inside(level: np.ndarray, softness: float) -> np.ndarray:
    """1 inside an outline and 0 outside, the edge `softness` wide on either side."""
    depth = (1 - level) * TYPICAL_DISC_RADIUS
    return _smooth_step(depth / (2 * softness) + 0.5)


def _smooth_step(t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)
