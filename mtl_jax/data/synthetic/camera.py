"""Fundus cameras, which turn the colours of a retina into a photograph.

Lengths are fractions of the frame's shorter side.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage, special

from mtl_jax.data.synthetic.anatomy import Framing

# RGB in [0, 1].
REFLECTION = np.array([0.75, 0.85, 0.95], np.float32)
REFLECTION_SOFTNESS = 0.012


@dataclasses.dataclass(frozen=True)
class Camera:
    """A fundus camera.

    Attributes:
      name: name in every record.
      framing: position of disc and fovea in the frame.
      field_of_view: diameter of the round field, which may exceed the frame.
      colour_gain: factors on R, G, B.
      gamma: exponent of the tone curve.
      blur: standard deviation of the lens's Gaussian blur.
      noise: standard deviation of the sensor noise, in intensities from 0 to 1.
      vignetting: share of the light lost at the field's edge.
      reflection_probability: probability of a bright dome at the field's edge.
      defocus_probability: probability of a photograph out of focus.
    """

    name: str
    framing: Framing
    field_of_view: float
    colour_gain: tuple[float, float, float]
    gamma: float
    blur: float
    noise: float
    vignetting: float
    reflection_probability: float = 0.10
    defocus_probability: float = 0.08


# Framing as in REFUGE: pixels of the native frame over its width.
TRAINING_CAMERA = Camera(
    name="training",
    framing=Framing(
        disc_fovea_distance=(798 / 2124, 48 / 2124),
        disc_above_fovea=(109 / 2124, 40 / 2124),
        gaze=(0.36, 0.08),
    ),
    field_of_view=0.93,
    colour_gain=(1.00, 1.00, 1.00),
    gamma=1.00,
    blur=0.0018,
    noise=0.018,
    vignetting=0.30,
)
EVALUATION_CAMERA = Camera(
    name="evaluation",
    framing=Framing(
        disc_fovea_distance=(626 / 1634, 46 / 1634),
        disc_above_fovea=(55 / 1634, 40 / 1634),
        gaze=(0.48, 0.08),
    ),
    field_of_view=1.02,
    colour_gain=(0.96, 1.00, 1.09),
    gamma=0.95,
    blur=0.0032,
    noise=0.010,
    vignetting=0.18,
)


def expose(rng: np.random.Generator, camera: Camera, tissue: np.ndarray) -> np.ndarray:
    """Takes a photograph.

    Args:
      rng: source of all randomness.
      camera: the camera.
      tissue: float32 [H, W, 3] in [0, 1], RGB colour of the retina.

    Returns:
      uint8 [H, W, 3].
    """
    x, y = _centred_coordinates(tissue.shape[:2])
    blur = _sample_blur(rng, camera) * min(tissue.shape[:2])
    gain = np.array(camera.colour_gain) * np.exp(rng.normal(0, 0.03, 3))
    light = tissue * _draw_illumination(rng, camera, x, y)
    reflection = _draw_reflection(rng, camera, x, y)
    light = ndimage.gaussian_filter(light, (blur, blur, 0), truncate=3)
    light = (light + reflection * REFLECTION) * gain.astype(np.float32)
    colour = np.clip(light, 0, 1) ** camera.gamma
    # Drawn last, as its number of draws depends on the number of pixels.
    colour += rng.standard_normal(colour.shape, np.float32) * camera.noise
    colour *= _draw_field(camera, x, y, tissue.shape)
    return np.clip(colour * 255 + 0.5, 0, 255).astype(np.uint8)


def _centred_coordinates(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Distances x [1, W] and y [H, 1] from the frame's centre."""
    height, width = size
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / min(size)
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / min(size)
    return x[None, :], y[:, None]


def _sample_blur(rng: np.random.Generator, camera: Camera) -> float:
    blur = camera.blur * rng.uniform(0.7, 1.3)
    if rng.random() < camera.defocus_probability:
        blur += rng.uniform(0.003, 0.007)
    return blur


def _draw_illumination(
    rng: np.random.Generator, camera: Camera, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Uneven light, [H, W, 1], darker towards the edge and one side."""
    direction, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.4)
    exposure = np.exp(rng.normal(0, 0.06))
    fall = camera.vignetting * (x**2 + y**2) / (camera.field_of_view / 2) ** 2
    tilt = slope * (x * math.cos(direction) + y * math.sin(direction))
    return (exposure * (1 - fall + tilt))[..., None].astype(np.float32)


def _draw_reflection(
    rng: np.random.Generator, camera: Camera, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """A bright dome at the field's edge, [H, W, 1]; all zero in most photographs."""
    wanted = rng.random() < camera.reflection_probability
    angle, radius = rng.uniform(0, 2 * math.pi), rng.uniform(0.10, 0.17)
    strength = rng.uniform(0.25, 0.6)
    if not wanted:
        return np.zeros((1, 1, 1), np.float32)
    edge = camera.field_of_view / 2
    distance = np.hypot(x - edge * math.cos(angle), y - edge * math.sin(angle))
    dome = strength * special.expit((radius - distance) / REFLECTION_SOFTNESS)
    return dome[..., None].astype(np.float32)


def _draw_field(
    camera: Camera, x: np.ndarray, y: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The round field of view, [H, W, 1] from 0 to 1, its edge one pixel wide."""
    outside = np.hypot(x, y) - camera.field_of_view / 2
    return np.clip(0.5 - outside * min(shape[:2]), 0, 1)[..., None]
