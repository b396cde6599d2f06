"""Losses per image, and their mean over the labelled images.

Every loss maps logits and targets to one number per image, [B] float32. `masked_mean`
averages them over the labelled images of the batch, or gives a share of that.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import optax

# sqrt(50) pixels at a width of 256, as in the original authors' program.
FOVEA_SIGMA = 50**0.5 / 256

Reduction = Literal["mean", "sum"]
Peak = Literal["point", "pixel"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a config says of the losses.

    Attributes:
      focal_gamma: gamma of classifications, see `focal_loss`.
      fovea_sigma: sigma of the target map of a point, as a fraction of the width.
      fovea_reduction: reduction over the pixels of that map, `mean` or `sum`.
      fovea_peak: maximum of that map, `point` or `pixel`.
    """

    focal_gamma: float = 2.0
    fovea_sigma: float = FOVEA_SIGMA
    fovea_reduction: Reduction = "mean"
    fovea_peak: Peak = "point"

    def map_of(self, points: jax.Array, size: Sequence[int]) -> jax.Array:
        """The target maps [B, H, W] of points [B, 2], see `fovea_map`."""
        return fovea_map(points, size, self.fovea_sigma, self.fovea_peak)


def focal_loss(logits: jax.Array, labels: jax.Array, gamma: float = 2.0) -> jax.Array:
    """Focal loss (Lin et al. 2017) of one binary label per image.

    Args:
      logits: [B].
      labels: [B], 0 or 1.
      gamma: strength of the discount for well classified images; 0 is cross-entropy.

    Returns:
      [B] losses.
    """
    chex.assert_equal_shape([logits, labels])
    return optax.losses.sigmoid_focal_loss(logits, labels, gamma=gamma)


def pixel_cross_entropy(logits: jax.Array, masks: jax.Array) -> jax.Array:
    """Binary cross-entropy averaged over the pixels of each image.

    Args:
      logits: [B, H, W].
      masks: [B, H, W], 1 inside and 0 outside.

    Returns:
      [B] losses.
    """
    chex.assert_equal_shape([logits, masks])
    losses = optax.losses.sigmoid_binary_cross_entropy(
        logits, masks.astype(logits.dtype)
    )
    return losses.mean((1, 2))


def heatmap_l1(
    logits: jax.Array, targets: jax.Array, reduction: Reduction = "mean"
) -> jax.Array:
    """L1 distance of the predicted map, sigmoid(logits), from the target map.

    Args:
      logits: [B, H, W].
      targets: [B, H, W] maps with maximum 1, see `fovea_map`.
      reduction: reduction over pixels: `sum` is the paper's formula, `mean` is that of
        the authors' program.

    Returns:
      [B] losses.
    """
    chex.assert_equal_shape([logits, targets])
    distance = jnp.abs(jax.nn.sigmoid(logits) - targets)
    return distance.mean((1, 2)) if reduction == "mean" else distance.sum((1, 2))


def fovea_map(
    fovea_xy: jax.Array,
    size: Sequence[int],
    sigma: float = FOVEA_SIGMA,
    peak: Peak = "point",
) -> jax.Array:
    """Target maps: isotropic Gaussians with maximum 1 at the foveas.

    Args:
      fovea_xy: [B, 2] points (x, y) in pixels of the map.
      size: (height, width) of the map.
      sigma: standard deviation as a fraction of the width.
      peak: position of the maximum: the `point`, which usually lies between pixels,
        or the `pixel` next to it. The authors' program has the latter: it divides the
        map by its largest pixel.

    Returns:
      [B, H, W] maps.
    """
    height, width = size
    scale = -0.5 / (sigma * width) ** 2

    def along(pixels, coordinates):
        square = (jnp.arange(pixels) - coordinates[:, None]) ** 2
        if peak == "pixel":
            square -= square.min(axis=1, keepdims=True)
        return jnp.exp(scale * square)

    column, row = along(height, fovea_xy[:, 1]), along(width, fovea_xy[:, 0])
    return column[:, :, None] * row[:, None, :]


def masked_mean(
    values: jax.Array, mask: jax.Array, count: jax.Array | None = None
) -> jax.Array:
    """Mean over the labelled images, or a share of it.

    Devices and microbatches have shares of a batch. The sum of their shares is the
    mean, and the sum of their gradients is its gradient.

    Args:
      values: [B] losses of the images of a share.
      mask: [B], True where the image has the label.
      count: labelled images of the whole batch; None if the share is the batch.

    Returns:
      The share of the mean; 0 if no image of the batch has the label.
    """
    chex.assert_equal_shape([values, mask])
    count = mask.sum() if count is None else count
    count = jnp.maximum(count, 1).astype(values.dtype)
    return jnp.where(mask, values, 0.0).sum() / count
