"""What a network sees of an image: all of it made smaller, or a square around the disc.

In two stages (Yu et al. 2019) a first network finds the optic disc on the whole image;
a second one segments disc and cup in a crop around it, of which it sees more pixels.
See `configuration.part_configs` for the tasks of each.

A window is (left, top, side) in pixels of the image, whose upper left corner is (0, 0);
the centre of the first pixel is at (0.5, 0.5) then.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.annotations import LABELS
from mtl_jax.tasks import Batch

KINDS = ("", "whole", "crop")
# Share of the training images that are seen from close by, if any are; and the least
# side of their windows, in times the disc's larger side.
_CLOSE_UPS, _LEAST_MARGIN = 1 / 3, 1.1
# The logit of what lies outside of the window: nothing is there.
OUTSIDE = -20.0
# Pixels whose centre is nearer to the edge of a window lie outside of it. On the edge
# itself, rounding would decide, and each machine and program could decide otherwise.
_EDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class View:
    """How images become those that a network is trained on.

    Attributes:
      kind: `whole` image, or a `crop`: the square around the optic disc.
      size: pixels a side of what the network sees, whatever the window.
      margin: side of the square, in times the disc's larger side.
      jitter: in training the square is moved by up to this fraction of its side either
        way along x and y, and its side changed by up to this fraction.
      zoom: in training a third of whole images are replaced by close-ups, squares in
        them whose side is smaller by up to this factor. They hold the disc if there is
        one. 1 for none.
    """

    kind: str
    size: int
    margin: float = 2.0
    jitter: float = 0.0
    zoom: float = 1.0

    def windows(self, batch: Batch) -> jax.Array:
        """The windows [B, 3]: around the true discs, unless the batch brings others.

        A batch's own are its key `window`; they take effect on the kind `crop` only.
        """
        if self.kind == "whole":
            batch_size, side = batch["image"].shape[:2]
            return jnp.tile(jnp.float32([0, 0, side]), (batch_size, 1))
        if "window" in batch:
            return batch["window"]
        return around(batch["disc_mask"], self.margin)

    def __call__(self, key: jax.Array, batch: Batch, index: jax.Array) -> Batch:
        """A training batch as the network is to see it.

        Args:
          key: of the step.
          batch: with images float [B, H, H, 3].
          index: [B] of each example in the batch of all devices.

        Returns:
          The batch with images and masks [B, size, size] and foveas to match. A part of
        an image without an annotated disc has no diagnosis.
        """
        windows = self.windows(batch)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        side = batch["image"].shape[1]
        if self.kind == "crop" and self.jitter:
            windows = jax.vmap(self._moved, (0, 0, None))(keys, windows, side)
        if self.kind == "whole" and self.zoom > 1:
            windows = jax.vmap(self._close_up)(keys, windows, batch["disc_mask"])
        # Where the disc is not annotated, a part of the image may not show it, and with
        # it what the diagnosis hangs on; and a crop is the whole image.
        is_part = (self.kind == "crop") | (windows[:, 2] < side)
        labels = batch["has_label"]
        is_lost = is_part & ~labels[:, LABELS.index("disc")]
        is_diagnosis = jnp.arange(len(LABELS)) == LABELS.index("glaucoma")
        labels = labels & ~(is_lost[:, None] & is_diagnosis)
        return {**self.look(batch, windows), "has_label": labels}

    def _moved(self, key, window, side):
        draws = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
        x, y, scale = self.jitter * draws
        left, top, length = window
        longer = jnp.minimum(length * (1 + scale), side)
        shift = (length - longer) / 2
        return _inside(
            left + shift + x * length, top + shift + y * length, longer, side
        )

    def _close_up(self, key, window, disc):
        """A window that holds the disc; anywhere if the mask is empty."""
        share, factor, x, y = jax.random.uniform(key, (4,))
        size = disc.shape[0]
        left, right, top, bottom = _box(disc)
        is_there = right > left
        least = _LEAST_MARGIN * jnp.maximum(right - left, bottom - top)
        side = jnp.clip(size * jnp.exp(-factor * jnp.log(self.zoom)), least, size)

        def start(first, last, place):
            low = jnp.where(is_there, jnp.maximum(last - side, 0), 0)
            high = jnp.where(is_there, jnp.minimum(first, size - side), size - side)
            return low + place * (high - low)

        close_up = jnp.stack([start(left, right, x), start(top, bottom, y), side])
        return jnp.where(share < _CLOSE_UPS, close_up, window)

    def look(self, batch: Batch, windows: jax.Array) -> Batch:
        """The batch through windows; of its keys, those that follow the image."""
        seen = {"image": crop(batch["image"], windows, self.size)}
        for key in ("disc_mask", "cup_mask"):
            if key in batch:
                mask = crop(batch[key][..., None], windows, self.size)[..., 0]
                seen[key] = (mask >= 0.5).astype(batch[key].dtype)
        if "fovea_xy" in batch:
            scale = self.size / windows[:, 2:]
            seen["fovea_xy"] = (batch["fovea_xy"] + 0.5 - windows[:, :2]) * scale - 0.5
        return {**batch, **seen}


def around(masks: jax.Array | np.ndarray, margin: float) -> jax.Array:
    """Square windows [B, 3] around masks [B, H, H], non-zero inside.

    Args:
      masks: an empty one gets the whole image.
      margin: side of the window, in times the larger side of the mask's box; no more
        than the image, and moved to lie inside of it.
    """

    def one(mask):
        size = mask.shape[0]
        left, right, top, bottom = _box(mask)
        side = margin * jnp.maximum(right - left, bottom - top)
        side = jnp.where(right > left, jnp.minimum(side, size), size)
        return _inside((left + right - side) / 2, (top + bottom - side) / 2, side, size)

    return jax.vmap(one)(masks)


def _box(mask):
    """Left, right, top, bottom of a mask [H, H]; right = left = 0 if it is empty."""

    def extent(axis):
        there = (mask != 0).any(axis)
        last = mask.shape[0] - jnp.argmax(there[::-1])
        return jnp.argmax(there), jnp.where(there.any(), last, 0)

    return *extent(0), *extent(1)


def crop(images: jax.Array, windows: jax.Array, size: int) -> jax.Array:
    """float32 [B, size, size, C] of images [B, H, H, C] through windows [B, 3].

    Bilinear, with an anti-aliasing filter where pixels are lost.
    """

    def one(image, window):
        scale = size / window[2]
        return jax.image.scale_and_translate(
            image.astype(jnp.float32),
            (size, size, image.shape[-1]),
            (0, 1),
            jnp.stack([scale, scale]),
            # Rows before columns.
            -scale * window[1::-1],
            "linear",
        )

    return jax.vmap(one)(images, windows)


def paste(maps: jax.Array, windows: jax.Array, size: int) -> jax.Array:
    """Undoes `crop` for logits [B, h, h]: [B, size, size], `OUTSIDE` elsewhere."""

    def one(values, window):
        left, top, side = window
        scale = side / values.shape[0]
        # The resizing puts zeros outside of the crop: as logits they would be on the
        # verge of something being there.
        pasted = jax.image.scale_and_translate(
            values - OUTSIDE,
            (size, size),
            (0, 1),
            jnp.stack([scale, scale]),
            jnp.stack([top, left]),
            "linear",
        )
        centres = jnp.arange(size) + 0.5
        rows = (centres > top + _EDGE) & (centres < top + side - _EDGE)
        columns = (centres > left + _EDGE) & (centres < left + side - _EDGE)
        inside = rows[:, None] & columns[None, :]
        return jnp.where(inside, pasted + OUTSIDE, OUTSIDE)

    return jax.vmap(one)(maps, windows)


def _inside(left, top, side, size):
    """The window moved so that it lies inside of an image of this size."""
    corner = jnp.clip(jnp.stack([left, top]), 0, size - side)
    return jnp.append(corner, side).astype(jnp.float32)
