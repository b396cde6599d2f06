"""What the grey values of masks mean."""

import numpy as np


def binary_mask(grey: np.ndarray) -> np.ndarray:
    """Thresholds the mask of one structure.

    A mask whose largest value is 1 holds the labels 0 and 1. All others are cut at half
    range, 128, because JPEG compression blurs the edges of 0/255 masks.

    Args:
      grey: uint8 [H, W].

    Returns:
      uint8 [H, W], 1 inside.
    """
    return (grey >= (1 if grey.max() == 1 else 128)).astype(np.uint8)


def disc_and_cup_masks(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Separates optic disc and cup of a mask with REFUGE's values.

    The values are 0 cup, 128 rim of the disc, 255 background. Other values (compression
    noise) count as the nearest of the three.

    Args:
      grey: uint8 [H, W].

    Returns:
      Two uint8 [H, W] masks, disc and cup, 1 inside.
    """
    return (grey < 192).view(np.uint8), (grey < 64).view(np.uint8)


def count_other_values(grey: np.ndarray) -> int:
    """Counts the pixels of a mask with other values than REFUGE's 0, 128 and 255."""
    official = sum(np.count_nonzero(grey == value) for value in (0, 128, 255))
    return int(grey.size - official)
