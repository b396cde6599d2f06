"""Connected components of masks inside of a compiled program.

The results are those of `mtl_jax.inference.postprocess`, which works on one mask in
host memory.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax.inference.postprocess import Connectivity


def roots(masks: jax.Array, connectivity: Connectivity = 8) -> jax.Array:
    """Names every component by its first pixel in reading order.

    Every pixel first has its own index. It then takes the least index around it, and
    the index that the pixel of that index has, until nothing changes. The second step
    doubles the way that an index goes each time: a disc takes about ten rounds.

    Args:
      masks: bool [B, H, W].
      connectivity: 8 if pixels that touch at a corner are connected, 4 if they must
        share an edge.

    Returns:
      int32 [B, H * W], row after row; H * W outside of the masks.
    """
    batch, height, width = masks.shape
    outside = height * width
    inside = masks.reshape(batch, outside)
    own = jnp.arange(outside, dtype=jnp.int32)[None]

    def least_around(index):
        index = index.reshape(batch, height, width)
        rows = _least_of_three(index, 1, outside)
        if connectivity == 8:
            around = _least_of_three(rows, 2, outside)
        else:
            around = jnp.minimum(rows, _least_of_three(index, 2, outside))
        return around.reshape(batch, outside)

    def spread(state):
        index, _ = state
        nearest = jnp.where(inside, least_around(index), outside)
        beyond = jnp.take_along_axis(
            nearest, jnp.minimum(nearest, outside - 1), 1, mode="promise_in_bounds"
        )
        found = jnp.where(inside, jnp.minimum(nearest, beyond), outside)
        return found, jnp.any(found != index)

    start = jnp.where(inside, own, outside), jnp.array(True)
    return lax.while_loop(lambda state: state[1], spread, start)[0]


def _least_of_three(index, axis, outside):
    """The least of each pixel and its neighbours along an axis."""
    size = index.shape[axis]
    padding = [(0, 0)] * index.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(index, padding, constant_values=outside)
    before = lax.slice_in_dim(padded, 0, size, axis=axis)
    after = lax.slice_in_dim(padded, 2, size + 2, axis=axis)
    return jnp.minimum(jnp.minimum(before, after), index)


def largest(
    masks: jax.Array,
    connectivity: Connectivity = 8,
    within: jax.Array | None = None,
) -> jax.Array:
    """Keeps the largest component of each mask, see `postprocess.largest_component`.

    Args:
      masks: bool [B, H, W].
      connectivity: see `roots`.
      within: bool [B, H, W], where pixels count for a component's size; None if all do.

    Returns:
      bool [B, H, W]; all False if no pixel counts.
    """
    batch, height, width = masks.shape
    index = roots(masks, connectivity)
    counted = (masks if within is None else masks & within).reshape(batch, -1)

    def areas_of(index, counted):
        areas = jnp.zeros(height * width + 1, jnp.int32)
        return areas.at[index].add(counted.astype(jnp.int32), mode="promise_in_bounds")

    # The last is that of the pixels outside.
    areas = jax.vmap(areas_of)(index, counted)[:, :-1]
    first = jnp.argmax(areas, 1).astype(jnp.int32)
    is_any = jnp.max(areas, 1) > 0
    kept = (index == first[:, None]) & is_any[:, None]
    return kept.reshape(batch, height, width)


def around_highest(maps: jax.Array, masks: jax.Array) -> jax.Array:
    """Keeps of each mask the component that holds the map's highest pixel.

    Args:
      maps: float [B, H, W].
      masks: bool [B, H, W], which hold that pixel.

    Returns:
      bool [B, H, W].
    """
    batch, height, width = masks.shape
    index = roots(masks)
    highest = jnp.argmax(maps.reshape(batch, -1), 1).astype(jnp.int32)[:, None]
    root = jnp.take_along_axis(index, highest, 1, mode="promise_in_bounds")
    return (index == root).reshape(batch, height, width)
