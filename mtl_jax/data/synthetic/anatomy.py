"""Random eyes: optic disc and cup, fovea and the signs of glaucoma.

Lengths are fractions of the frame's shorter side; nothing here depends on pixels. The
origin of the *eye frame* is the disc's centre. Its x grows towards the temple, so that
the fovea always lies at positive x, and its y grows downwards. The photograph of one of
the two eyes mirrors x.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

# Vertical cup-to-disc ratio: mean and standard deviation. The ranges overlap, so that
# the ratio alone does not determine the diagnosis.
HEALTHY_VCDR = (0.44, 0.10)
GLAUCOMA_VCDR = (0.64, 0.11)

# Probability of each sign of glaucoma, (healthy, glaucoma).
WEDGE_PROBABILITY = (0.03, 0.70)
NOTCH_PROBABILITY = (0.02, 0.45)
HAEMORRHAGE_PROBABILITY = (0.02, 0.30)
# Probability of a wedge defect in a glaucomatous eye without other signs.
LAST_CUE_PROBABILITY = 0.9
ATROPHY_PROBABILITY = (0.25, 0.40)

DISC_HEIGHT = (0.190, 0.012)
DISC_ASPECT = (0.92, 0.035)
# Least distance from the cup to the disc's edge, as a share of the disc's radius.
NARROWEST_RIM = 0.07


@dataclasses.dataclass(frozen=True)
class Framing:
    """Position of disc and fovea in the frame; pairs are (mean, deviation).

    Attributes:
      disc_fovea_distance: distance from disc centre to fovea.
      disc_above_fovea: height of the disc above the fovea.
      gaze: position of the frame's centre between fovea (0) and disc (1).
    """

    disc_fovea_distance: tuple[float, float]
    disc_above_fovea: tuple[float, float]
    gaze: tuple[float, float]


class Notch(NamedTuple):
    """A bulge of the cup: angle [rad], relative height, width [rad]."""

    angle: float
    height: float
    width: float


class Wedge(NamedTuple):
    """A nerve-fibre-layer defect, a dark sector along the fibres.

    Attributes:
      angle: angle at which the fibres leave the disc, from the fovea's direction;
        positive is below it [rad].
      half_width: half of the sector's angle [rad].
      depth: lost share of the layer, 0 to 1.
      length: reach from the disc's centre.
    """

    angle: float
    half_width: float
    depth: float
    length: float


class Haemorrhage(NamedTuple):
    """A splinter of blood at the disc's margin: angle on the disc [rad] and size."""

    angle: float
    length: float
    width: float


@dataclasses.dataclass(frozen=True)
class Outline:
    """A closed curve round `centre`, an ellipse with small waves and notches.

    Attributes:
      centre: (x, y) in the eye frame.
      semi_axes: horizontal and vertical.
      waves: (amplitude, phase) of the relative radius' harmonics 2, 3, …
      notches: bulges of the curve.
    """

    centre: tuple[float, float]
    semi_axes: tuple[float, float]
    waves: tuple[tuple[float, float], ...] = ()
    notches: tuple[Notch, ...] = ()

    def radius(self, angle: np.ndarray) -> np.ndarray:
        """Distance from the centre to the curve in the direction `angle` [rad]."""
        a, b = self.semi_axes
        ellipse = a * b / np.hypot(b * np.cos(angle), a * np.sin(angle))
        relative = np.ones_like(angle)
        for k, (amplitude, phase) in enumerate(self.waves, start=2):
            relative = relative + amplitude * np.cos(k * angle + phase)
        for notch in self.notches:
            apart = angular_distance(angle, notch.angle)
            relative = relative + notch.height * np.exp(-((apart / notch.width) ** 2))
        return ellipse * relative

    def level(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance from the centre relative to the curve's: below 1 inside."""
        dx, dy = x - self.centre[0], y - self.centre[1]
        return np.hypot(dx, dy) / self.radius(np.arctan2(dy, dx))

    def scaled(self, factor: float, shift_x: float = 0.0) -> "Outline":
        """The same shape, scaled by `factor` and moved towards the temple."""
        x, y = self.centre
        a, b = self.semi_axes
        return dataclasses.replace(
            self, centre=(x + shift_x, y), semi_axes=(factor * a, factor * b)
        )


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """One eye and its position in the frame.

    Attributes:
      side: +1 if the fovea is on the right of the disc in the photograph, else -1.
      gaze_point: the point of the eye frame at the frame's centre.
      disc: outline of the optic disc.
      cup: outline of the cup, which `levels` cuts off at the narrowest rim.
      fovea: (x, y) in the eye frame.
      wedges: nerve-fibre-layer defects.
      haemorrhages: haemorrhages at the disc's margin.
      atrophy: outer edge of a peripapillary crescent, or None.
      glaucoma: the diagnosis.
    """

    side: int
    gaze_point: tuple[float, float]
    disc: Outline
    cup: Outline
    fovea: tuple[float, float]
    wedges: tuple[Wedge, ...]
    haemorrhages: tuple[Haemorrhage, ...]
    atrophy: Outline | None
    glaucoma: bool

    def levels(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`Outline.level` of the disc and of the cup, the cup confined to the disc."""
        disc = self.disc.level(x, y)
        return disc, np.maximum(self.cup.level(x, y), disc / (1 - NARROWEST_RIM))

    def fovea_angle(self) -> float:
        """Direction from disc to fovea [rad]."""
        return math.atan2(self.fovea[1], self.fovea[0])


def angular_distance(angle: np.ndarray, other: float) -> np.ndarray:
    """Absolute difference of two directions [rad], at most pi."""
    return np.abs((angle - other + math.pi) % (2 * math.pi) - math.pi)


def sample_anatomy(
    rng: np.random.Generator, framing: Framing, glaucoma: bool
) -> Anatomy:
    """Draws an eye in front of a camera.

    Args:
      rng: source of all randomness.
      framing: position of disc and fovea in the frame.
      glaucoma: whether the eye comes from the population with glaucoma.

    Returns:
      The eye's anatomy.
    """
    side = 1 if rng.random() < 0.5 else -1
    fovea = _sample_fovea(rng, framing)
    gaze = np.clip(rng.normal(*framing.gaze), 0.1, 0.8)
    gaze_point = (
        (1 - gaze) * fovea[0],
        (1 - gaze) * fovea[1] + rng.normal(0, 0.015),
    )
    disc = _sample_disc(rng)
    notches = _sample_notches(rng, glaucoma)
    wedges = _sample_wedges(rng, glaucoma)
    haemorrhages = _sample_haemorrhages(rng, glaucoma)
    no_cue = not (notches or wedges or haemorrhages)
    if glaucoma and no_cue and rng.random() < LAST_CUE_PROBABILITY:
        wedges = (_sample_wedge(rng),)
    return Anatomy(
        side=side,
        gaze_point=gaze_point,
        disc=disc,
        cup=_sample_cup(rng, disc, glaucoma, notches),
        fovea=fovea,
        wedges=wedges,
        haemorrhages=haemorrhages,
        atrophy=_sample_atrophy(rng, disc, glaucoma),
        glaucoma=glaucoma,
    )


def _sample_fovea(rng: np.random.Generator, framing: Framing) -> tuple[float, float]:
    distance = _clipped_normal(rng, *framing.disc_fovea_distance)
    below = _clipped_normal(rng, *framing.disc_above_fovea)
    return math.sqrt(distance**2 - below**2), below


def _sample_disc(rng: np.random.Generator) -> Outline:
    height = _clipped_normal(rng, *DISC_HEIGHT)
    width = height * _clipped_normal(rng, *DISC_ASPECT)
    return Outline((0.0, 0.0), (width / 2, height / 2), _sample_waves(rng, 0.012))


def _sample_cup(
    rng: np.random.Generator,
    disc: Outline,
    glaucoma: bool,
    notches: tuple[Notch, ...],
) -> Outline:
    mean, deviation = GLAUCOMA_VCDR if glaucoma else HEALTHY_VCDR
    ratio = float(np.clip(rng.normal(mean, deviation), 0.2, 0.88))
    horizontal = ratio * _clipped_normal(rng, 0.97, 0.05)
    a, b = disc.semi_axes
    # The space inside the disc limits the distance between the two centres.
    slack = 1 - ratio
    centre = (
        a * slack * rng.uniform(0.0, 0.35),
        b * slack * rng.uniform(-0.15, 0.15),
    )
    semi_axes = (horizontal * a, ratio * b)
    return Outline(centre, semi_axes, _sample_waves(rng, 0.025), notches)


def _sample_waves(
    rng: np.random.Generator, amplitude: float
) -> tuple[tuple[float, float], ...]:
    return tuple(
        (rng.normal(0, amplitude / k), rng.uniform(0, 2 * math.pi)) for k in (1, 2, 3)
    )


def _sample_notches(rng: np.random.Generator, glaucoma: bool) -> tuple[Notch, ...]:
    if rng.random() >= NOTCH_PROBABILITY[glaucoma]:
        return ()
    angle = _pole(rng) * rng.uniform(math.radians(55), math.radians(95))
    return (Notch(angle, rng.uniform(0.25, 0.45), math.radians(rng.uniform(22, 34))),)


def _sample_wedges(rng: np.random.Generator, glaucoma: bool) -> tuple[Wedge, ...]:
    if rng.random() >= WEDGE_PROBABILITY[glaucoma]:
        return ()
    first = _sample_wedge(rng)
    if not glaucoma or rng.random() >= 0.25:
        return (first,)
    second = _sample_wedge(rng)
    return (first, second._replace(angle=-math.copysign(second.angle, first.angle)))


def _sample_wedge(rng: np.random.Generator) -> Wedge:
    return Wedge(
        angle=_pole(rng) * math.radians(rng.uniform(45, 85)),
        half_width=math.radians(rng.uniform(9, 16)),
        depth=rng.uniform(0.7, 1.0),
        length=rng.uniform(0.38, 0.5),
    )


def _sample_haemorrhages(
    rng: np.random.Generator, glaucoma: bool
) -> tuple[Haemorrhage, ...]:
    if rng.random() >= HAEMORRHAGE_PROBABILITY[glaucoma]:
        return ()
    angle = _pole(rng) * math.radians(rng.uniform(35, 115))
    return (Haemorrhage(angle, rng.uniform(0.04, 0.06), rng.uniform(0.012, 0.018)),)


def _sample_atrophy(
    rng: np.random.Generator, disc: Outline, glaucoma: bool
) -> Outline | None:
    if rng.random() >= ATROPHY_PROBABILITY[glaucoma]:
        return None
    return disc.scaled(rng.uniform(1.05, 1.15), shift_x=rng.uniform(0.012, 0.028))


def _pole(rng: np.random.Generator) -> int:
    """-1 for above, +1 for below; damage starts more often below."""
    return 1 if rng.random() < 0.6 else -1


def _clipped_normal(rng: np.random.Generator, mean: float, deviation: float) -> float:
    return mean + deviation * float(np.clip(rng.normal(), -2.5, 2.5))
