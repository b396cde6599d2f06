"""Turns maps of logits into masks, a fovea and a vertical cup-to-disc ratio.

The paper and its authors' program differ in some conventions, and `PostProcessing`
chooses between them. docs/authors.md lists the differences.

A point is (x, y) = (column, row) with pixel centres at whole numbers, as in
`mtl_jax.data.geometry`.

References:
  Pascal et al., Multi-task deep learning for glaucoma detection from color fundus
  images, Scientific Reports 12:12361, 2022.
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020, whose
  published evaluation program fixes the height of a mask and the vCDR.
"""

import dataclasses
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.special import expit

from mtl_jax.data.geometry import Frame, PixelOrigin, picture_to_native

Connectivity = Literal[8, 4]
Empty = Literal["empty", "whole"]
Vcdr = Literal["masks", "probabilities"]
Cup = Literal["largest", "in_disc"]
Point = Literal["map", "peak"]

# Keeps the ratio finite without a disc, as in REFUGE's evaluation program.
LEAST_HEIGHT = 1e-7

# The least maximum of a map with a point; that of the target is 1. Measured on the
# validation photographs of docs/model_card.md: of IDRiD's 69 maps two are lower, whose
# points are far off, and nine of 17 others, most of which do not show the macula.
LEAST_PEAK = 0.2

# Share of a map's highest probability that its peak's pixels have at least.
PEAK_SHARE = 1 / 3

# Neighbours of a pixel that belong to its component.
_NEIGHBOURS = {
    8: np.ones((3, 3), bool),
    4: ndimage.generate_binary_structure(2, 1),
}


@dataclasses.dataclass(frozen=True)
class PostProcessing:
    """Conventions for reading a network's maps; the defaults follow the paper's text.

    Attributes:
      connectivity: pixels of a component touch at an edge or a corner (8), or only at
        an edge (4, the authors' program).
      empty: result for a mask without a pixel of probability >= 0.5: `empty`, or the
        `whole` image (the authors' program).
      vcdr: source of the ratio: the cleaned `masks`, or the `probabilities` (the
        authors' program, see `probability_cdr`).
      cup: component that is the cup: the `largest`, or, where the network has a disc,
        the one with the largest part `in_disc`. A bright artefact at the border of a
        photograph can be larger than the cup.
      point: pixels whose centre of mass is a point: all of the `map`, or its `peak`. A
        low probability everywhere draws the centre of the map towards the image's.
      pixel_origin: conversion of points to images of another size, see
        `geometry.rescale_xy`.
    """

    connectivity: Connectivity = 8
    empty: Empty = "empty"
    vcdr: Vcdr = "masks"
    cup: Cup = "largest"
    point: Point = "map"
    pixel_origin: PixelOrigin = "centre"


PAPER = PostProcessing()


def largest_component(
    mask: np.ndarray,
    connectivity: Connectivity = 8,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """Keeps the largest connected component of a mask.

    Among components of equal size, the first in reading order stays.

    Args:
      mask: [H, W], non-zero inside.
      connectivity: 8 if pixels that touch at a corner are connected, 4 if they must
        share an edge.
      within: [H, W], non-zero where pixels count for a component's size; None if all
        do. The component that stays is whole, with its part beyond.

    Returns:
      uint8 [H, W], 1 inside; all zero if no pixel of `mask` counts.
    """
    labels, _ = ndimage.label(np.asarray(mask) != 0, _NEIGHBOURS[connectivity])
    counted = labels.ravel() if within is None else labels[np.asarray(within) != 0]
    # Labels are numbered in reading order, and argmax returns the first maximum.
    areas = np.bincount(counted, minlength=2)[1:]
    if not areas.any():
        return np.zeros(labels.shape, np.uint8)
    return (labels == 1 + np.argmax(areas)).astype(np.uint8)


def segment(
    logits: np.ndarray,
    frame: Frame | None = None,
    post: PostProcessing = PAPER,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """Turns a map of logits into a mask (Pascal et al. 2022).

    Pixels of probability >= 0.5 are inside, and only the largest component stays. The
    probabilities are resized, not the mask: the outline at native size is then smooth
    rather than a staircase of model pixels. Nothing is found outside the frame.

    Args:
      logits: float [H, W].
      frame: what the map shows of the image that the mask is for; None if this is the
        map itself.
      post: conventions on connectivity and empty masks.
      within: mask of the image's size that components are compared in, see
        `largest_component`; None for all of it.

    Returns:
      uint8 mask, 1 inside, of the image's size.
    """
    probability = expit(np.asarray(logits, np.float32))
    if frame is not None:
        probability = picture_to_native(probability, frame)
    inside = probability >= 0.5
    if post.empty == "whole" and not inside.any():
        return np.ones(inside.shape, np.uint8)
    return largest_component(inside, post.connectivity, within)


def centre_of_mass(logits: np.ndarray, of: Point = "map") -> tuple[float, float]:
    """Turns a map of logits into a fovea (Pascal et al. 2022).

    The fovea is the centre of mass of the probabilities. In the paper this is that of
    the whole map, without clean-up.

    Args:
      logits: float [H, W].
      of: pixels that count: all of the `map`, or its `peak`, the connected pixels
        around the highest probability that have at least a third of it.

    Returns:
      (x, y) in pixels of the map; the centre of the image if all mass is zero.
    """
    mass = expit(np.asarray(logits, np.float64))
    height, width = mass.shape
    if of == "peak":
        labels, _ = ndimage.label(mass >= PEAK_SHARE * mass.max(), _NEIGHBOURS[8])
        mass = np.where(labels == labels.flat[mass.argmax()], mass, 0.0)
    total = mass.sum()
    if total == 0:
        return (width - 1) / 2, (height - 1) / 2
    x = mass.sum(axis=0) @ np.arange(width) / total
    y = mass.sum(axis=1) @ np.arange(height) / total
    return float(x), float(y)


def mask_height(mask: np.ndarray) -> int:
    """Returns the largest number of mask pixels in a column (REFUGE evaluation).

    Args:
      mask: [H, W], non-zero inside.

    Returns:
      The height in pixels, without holes.
    """
    return int(np.count_nonzero(mask, axis=0).max(initial=0))


def vertical_cdr(disc: np.ndarray, cup: np.ndarray) -> float:
    """Computes the vCDR, cup height / (disc height + 1e-7) (REFUGE evaluation).

    Args:
      disc: [H, W], non-zero inside the optic disc.
      cup: [H, W], non-zero inside the optic cup.

    Returns:
      The ratio; 0 without a cup, and very large for a cup without a disc.
    """
    return mask_height(cup) / (mask_height(disc) + LEAST_HEIGHT)


def probability_cdr(disc_logits: np.ndarray, cup_logits: np.ndarray) -> float:
    """Computes the vCDR from probabilities, as the authors' program does.

    The height of a map is the largest sum of probabilities in a column, without
    threshold or component. The ratio always exists.

    Args:
      disc_logits: float [H, W] of the optic disc.
      cup_logits: float [H, W] of the optic cup.

    Returns:
      Cup height / (disc height + 1e-7), which may exceed 1.
    """
    disc, cup = (
        expit(np.asarray(logits, np.float64)).sum(axis=0).max()
        for logits in (disc_logits, cup_logits)
    )
    return float(cup / (disc + LEAST_HEIGHT))
