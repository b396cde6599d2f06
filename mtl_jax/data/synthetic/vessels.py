"""Random retinal vessels, in the eye frame and units of `anatomy`."""

import math
from typing import NamedTuple

import numpy as np

VEIN_WIDTH = 0.0135
ARTERY_WIDTH = 0.0100
THINNEST_VESSEL = 0.0018
# Distance between points of a vessel's path.
VESSEL_STEP = 0.012
# Least distance between branches of trunks, and between branches of branches.
BRANCH_SPACING = 0.065
TWIG_SPACING = 0.110
# Least distance from a vessel to the fovea.
AVASCULAR_RADIUS = 0.050

# Nerve fibres, and the vessels above and below the macula, leave the disc steeply and
# bend round the fovea. Their angle falls by this much per unit of distance.
FIBRE_BEND = math.radians(105)
FIBRE_START = 0.09


class Vessel(NamedTuple):
    """A ribbon: points [n, 2] in the eye frame, full widths [n], and its kind."""

    points: np.ndarray
    widths: np.ndarray
    is_artery: bool


def sample_vessels(
    rng: np.random.Generator, fovea: tuple[float, float]
) -> tuple[Vessel, ...]:
    """Draws arteries and veins with two generations of branches.

    Args:
      rng: source of all randomness.
      fovea: (x, y) in the eye frame.

    Returns:
      The vessels, thickest last.
    """
    trunks = _sample_trunks(rng, math.atan2(fovea[1], fovea[0]))
    branches = _sample_branches(rng, trunks, BRANCH_SPACING)
    twigs = _sample_branches(rng, branches, TWIG_SPACING)
    kept = (_outside_macula(v, fovea) for v in (*twigs, *branches, *trunks))
    return tuple(vessel for vessel in kept if len(vessel.points) > 2)


class Course(NamedTuple):
    """The course of one kind of trunk, above and below the fovea's direction.

    Attributes:
      angle: lowest and highest angle at the disc, from the fovea's direction [degrees].
      bend: decrease of the angle per unit of distance [rad].
      width: width relative to the widest vessels.
      length: length of the trunk.
      is_pair: whether artery and vein run side by side, or only one of them.
    """

    angle: tuple[float, float]
    bend: float
    width: float
    length: float
    is_pair: bool


NASAL = Course((112, 140), math.radians(-25), width=0.7, length=0.50, is_pair=True)
MACULAR = Course((20, 38), math.radians(40), width=0.35, length=0.30, is_pair=False)
ARCADE = Course((66, 88), FIBRE_BEND, width=1.0, length=0.70, is_pair=True)


def _sample_trunks(rng: np.random.Generator, fovea_angle: float) -> list[Vessel]:
    """The vessels that leave the disc."""
    hilum = np.array([rng.uniform(-0.025, -0.01), rng.normal(0, 0.006)])
    trunks = []
    for pole in (-1, 1):
        for course in (NASAL, MACULAR, ARCADE):
            angle, bend = (
                rng.uniform(*course.angle),
                course.bend * rng.uniform(0.9, 1.1),
            )
            kinds = (False, True) if course.is_pair else (rng.random() < 0.5,)
            for is_artery in kinds:
                apart = rng.uniform(3, 8) * (1 if is_artery else -1)
                start = math.radians(angle + apart)
                path = _trunk_path(rng, hilum, pole, start, bend, course.length)
                width = course.width * (ARTERY_WIDTH if is_artery else VEIN_WIDTH)
                widths = _taper(width * rng.uniform(0.85, 1.15), len(path), 0.35)
                trunks.append(Vessel(_rotated(path, fovea_angle), widths, is_artery))
    return trunks


def _trunk_path(
    rng: np.random.Generator,
    hilum: np.ndarray,
    pole: int,
    angle: float,
    bend: float,
    length: float,
) -> np.ndarray:
    """A path that starts at the hilum and follows the nerve fibres, [n, 2]."""
    r = np.arange(0.004, length, VESSEL_STEP)
    direction = angle - bend * np.maximum(r - FIBRE_START, 0)
    for waves_per_unit in (3, 6, 11):
        phase = rng.uniform(0, 2 * math.pi)
        sway = math.radians(rng.normal(0, 8 / waves_per_unit))
        direction = direction + sway * np.sin(2 * math.pi * waves_per_unit * r + phase)
    path = np.stack([np.cos(direction), pole * np.sin(direction)], -1) * r[:, None]
    return path + hilum * np.maximum(1 - r / FIBRE_START, 0)[:, None]


def _sample_branches(
    rng: np.random.Generator, parents: list[Vessel], spacing: float
) -> list[Vessel]:
    """Branches of all parents, left and right in turn, `spacing` apart or more."""
    branches = []
    for parent in parents:
        side = 1 if rng.random() < 0.5 else -1
        along = FIBRE_START + rng.uniform(0, spacing)
        reach = (len(parent.points) - 2) * VESSEL_STEP
        while along < reach:
            length = rng.uniform(0.35, 0.8) * (reach - along) + 0.05
            branches.append(_sample_branch(rng, parent, along, side, length))
            along += spacing * rng.uniform(1.0, 2.2)
            side = -side
    return branches


def _sample_branch(
    rng: np.random.Generator, parent: Vessel, along: float, side: int, length: float
) -> Vessel:
    """A branch at the distance `along` its parent, on one side (1 or -1)."""
    i = int(along / VESSEL_STEP)
    x, y = parent.points[i + 1] - parent.points[i]
    heading = math.atan2(y, x) + side * math.radians(rng.uniform(30, 60))
    path = _branch_path(rng, parent.points[i], heading, -side, length)
    widths = _taper(parent.widths[i] * rng.uniform(0.45, 0.7), len(path), 0.4)
    return Vessel(path, widths, parent.is_artery)


def _branch_path(
    rng: np.random.Generator,
    start: np.ndarray,
    heading: float,
    turn: int,
    length: float,
) -> np.ndarray:
    """A path that bends back slightly to its parent's direction, [n, 2]."""
    steps = np.arange(0, length, VESSEL_STEP)
    phases = rng.uniform(0, 2 * math.pi, 2)
    sway = 0.25 * np.sin(2 * math.pi * 5 * steps + phases[0])
    sway += 0.20 * np.sin(2 * math.pi * 11 * steps + phases[1])
    direction = heading + turn * rng.uniform(0.5, 2.0) * steps + sway
    moves = VESSEL_STEP * np.stack([np.cos(direction), np.sin(direction)], -1)
    return start + np.cumsum(moves, axis=0) - moves[:1]


def _taper(width: float, count: int, end: float) -> np.ndarray:
    return np.maximum(width * np.linspace(1, end, count), THINNEST_VESSEL)


def _rotated(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def _outside_macula(vessel: Vessel, fovea: tuple[float, float]) -> Vessel:
    """Cuts a vessel off at the avascular zone."""
    near = np.hypot(*(vessel.points - fovea).T) < AVASCULAR_RADIUS
    end = int(np.argmax(near)) if near.any() else len(near)
    return vessel._replace(points=vessel.points[:end], widths=vessel.widths[:end])
