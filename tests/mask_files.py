"""Drawn masks that are hardly ever meant, by what is wrong with them."""

import numpy as np
from PIL import Image

SIZE = (120, 160)


def circle(x, y, radius, size=SIZE):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.hypot(columns - x, rows - y) <= radius


DISC, CUP = circle(100, 60, 15), circle(101, 60, 8)


def levels(outside, rim, cup):
    return np.select([CUP, DISC], [cup, rim], outside).astype(np.uint8)


def fundus(seed=0, size=SIZE):
    """A round field of view on a dark ground, like no other seed's."""
    rng = np.random.default_rng(seed)
    height, width = size
    pixels = rng.integers(0, 4, (*size, 3))
    field = circle((width - 1) / 2, (height - 1) / 2, 0.47 * height, size)
    pixels[field] = rng.integers((220, 120, 60), (250, 140, 80), (field.sum(), 3))
    return pixels.astype(np.uint8)


def saved(path, pixels, mode=None):
    Image.fromarray(pixels, mode).save(path)
    return path


def with_alpha():
    black = np.zeros((*SIZE, 4), np.uint8)
    black[..., 3] = 255 * DISC
    return black


def red_and_green():
    both = np.zeros((*SIZE, 3), np.uint8)
    both[..., 0], both[..., 1] = 255 * DISC, 255 * CUP
    return both


def indexed():
    mask = Image.fromarray(DISC.astype(np.uint8) + CUP)
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 255, 0])
    return np.asarray(mask.convert("RGB"))


EMPTY = np.zeros(SIZE, np.uint8)
POINT = 255 * circle(100, 60, 0).astype(np.uint8)
RAMP = np.clip(255 - 8 * np.hypot(*(np.indices(SIZE) - [[[60]], [[100]]])), 0, 255)

WRONG = {
    "inverted disc": ("disc_mask", levels(255, 0, 0), "large_mask"),
    "inverted cup": ("cup_mask", levels(255, 255, 0), "large_mask"),
    "REFUGE's values as a disc": ("disc_mask", levels(255, 128, 0), "large_mask"),
    "REFUGE's values as a cup": ("cup_mask", levels(255, 128, 0), "large_mask"),
    "REFUGE inverted": ("mask", levels(0, 128, 255), "large_mask"),
    "0, 127, 255": ("disc_mask", levels(0, 127, 255), "grey_levels"),
    "0, 128, 255": ("disc_mask", levels(0, 128, 255), "grey_levels"),
    "0, 100, 200": ("disc_mask", levels(0, 100, 200), "grey_levels"),
    "a probability": ("disc_mask", RAMP.astype(np.uint8), "grey_levels"),
    "REFUGE with a fourth": ("mask", levels(255, 170, 0), "grey_levels"),
    "red and green": ("disc_mask", red_and_green(), "colours"),
    "red and green as both": ("mask", red_and_green(), "colours"),
    "a palette": ("disc_mask", indexed(), "colours"),
    "in alpha": ("disc_mask", with_alpha(), "alpha"),
    "a cup in alpha": ("cup_mask", with_alpha(), "alpha"),
    "no disc": ("disc_mask", EMPTY, "empty_mask"),
    "no cup": ("cup_mask", EMPTY, "empty_mask"),
    "a disc as both": ("mask", levels(255, 0, 0), "one_structure"),
    "no cup in both": ("mask", levels(255, 128, 128), "one_structure"),
    "a point": ("disc_mask", POINT, "tiny_disc"),
    "the photograph": ("disc_mask", fundus(), "photograph_as_mask"),
    "the photograph as both": ("mask", fundus(), "photograph_as_mask"),
}
