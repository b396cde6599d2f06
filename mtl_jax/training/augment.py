"""Random changes of the training images, on the device and inside the step.

Masks and fovea move with the image. Every example of the global batch has a random
stream of its own, so that the result does not depend on how devices share the batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

from mtl_jax.tasks import Batch


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How strongly images are changed; the default changes nothing.

    Attributes:
      flip_horizontal: mirror half of the images left to right (the other eye).
      flip_vertical: mirror half of the images top to bottom.
      rotation: turn by up to so many degrees either way.
      scale: enlarge or reduce by up to the factor 1 + scale.
      shift: move by up to this fraction of the side either way, along x and y.
      brightness: multiply all channels by a factor in 1 -+ brightness.
      contrast: stretch about the image's mean by a factor in 1 -+ contrast.
      colour: multiply each channel by a factor of its own in 1 -+ colour.
      illumination: brighten and darken by up to the factor 1 + illumination along a
        wave of up to one cycle in any direction, like glare at one side of the eye.
    """

    flip_horizontal: bool = False
    flip_vertical: bool = False
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    illumination: float = 0.0

    def __bool__(self) -> bool:
        """Whether anything is changed at all."""
        return self != Augmentation()

    def __call__(self, key: jax.Array, batch: Batch, index: jax.Array) -> Batch:
        """Changes a batch.

        Args:
          key: of the step.
          batch: with images float [B, H, W, 3] in [0, 1].
          index: [B] of each example in the batch of all devices.

        Returns:
          The batch with other images, masks and foveas. A fovea that left the image
          keeps its label, which says that there is none to be found.
        """

        def one(index, image, disc, cup, fovea_xy):
            space, tone = jax.random.split(jax.random.fold_in(key, index))
            layers = jnp.concatenate(
                [image, disc[..., None], cup[..., None]], axis=-1, dtype=jnp.float32
            )
            transform = self._transform(space, image.shape[0])
            layers, fovea_xy = _warp(layers, fovea_xy, *transform)
            masks = (layers[..., 3:] >= 0.5).astype(disc.dtype)
            return {
                "image": self._recolour(tone, layers[..., :3]),
                "disc_mask": masks[..., 0],
                "cup_mask": masks[..., 1],
                "fovea_xy": fovea_xy,
            }

        keys = ("image", "disc_mask", "cup_mask", "fovea_xy")
        return {**batch, **jax.vmap(one)(index, *(batch[k] for k in keys))}

    def _transform(self, key, size):
        """2x2 matrix about the image's centre, its inverse, a shift in pixels."""
        flips, turn, zoom, move = jax.random.split(key, 4)
        allowed = jnp.array([self.flip_horizontal, self.flip_vertical])
        mirror = jnp.where(jax.random.bernoulli(flips, 0.5, (2,)) & allowed, -1.0, 1.0)
        limit = jnp.deg2rad(self.rotation)
        angle = jax.random.uniform(turn, minval=-limit, maxval=limit)
        limit = jnp.log1p(self.scale)
        scale = jnp.exp(jax.random.uniform(zoom, minval=-limit, maxval=limit))
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turned = jnp.array([[cos, -sin], [sin, cos]])
        limit = self.shift * size
        shift = jax.random.uniform(move, (2,), minval=-limit, maxval=limit)
        return scale * turned * mirror, (turned * mirror).T / scale, shift

    def _recolour(self, key, image):
        def factor(key, strength, shape=()):
            return jax.random.uniform(
                key, shape, minval=1 - strength, maxval=1 + strength
            )

        brightness, contrast, colour, light = jax.random.split(key, 4)
        mean = image.mean()
        image = (image - mean) * factor(contrast, self.contrast) + mean
        gain = factor(brightness, self.brightness) * factor(colour, self.colour, (3,))
        wave = _wave(light, image.shape[0])[..., None]
        gain *= jnp.exp(jnp.log1p(self.illumination) * wave)
        return jnp.clip(image * gain, 0.0, 1.0)


def _wave(key, size):
    """[size, size] values in [-1, 1]: a wave of random direction, length and phase."""
    turn, *frequency = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    ys, xs = jnp.mgrid[:size, :size] / size
    x, y = frequency
    return jnp.sin(2 * jnp.pi * (x * xs + y * ys) + jnp.pi * turn)


def _warp(layers, fovea_xy, matrix, inverse, shift):
    """Moves [H, H, C] layers (bilinear, zero outside) and a point with them."""
    size = layers.shape[0]
    centre = (size - 1) / 2
    ys, xs = jnp.mgrid[:size, :size]
    target = jnp.stack([xs, ys], axis=-1) - centre - shift
    # Coordinates do not bear the rounding that accelerators use for products.
    source = jnp.matmul(target, inverse.T, precision="highest") + centre
    moved = jnp.matmul(matrix, fovea_xy - centre, precision="highest") + centre + shift

    def sample(layer):
        # Transposed, as the points are (x, y).
        return ndimage.map_coordinates(layer.T, [source[..., 0], source[..., 1]], 1)

    return jax.vmap(sample, -1, -1)(layers), moved
