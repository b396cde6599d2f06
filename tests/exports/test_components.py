"""Components inside of a compiled program, against those of SciPy."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from mtl_jax.exports import components
from mtl_jax.inference import postprocess

SIDE = 12
BATCH = 8
MASKS = hnp.arrays(np.bool_, (BATCH, SIDE, SIDE))
largest = jax.jit(components.largest, static_argnums=1)


def serpentine(side):
    """Every second row, each joined to the next at one end, by turns."""
    mask = np.zeros((side, side), bool)
    mask[::2] = True
    mask[1:-1:4, -1] = mask[3:-1:4, 0] = True
    return mask


@pytest.mark.parametrize("connectivity", [8, 4])
@settings(max_examples=40)
@given(masks=MASKS, within=st.none() | MASKS)
def test_the_largest_component(connectivity, masks, within):
    found = np.asarray(largest(masks, connectivity, within))
    for i, mask in enumerate(masks):
        part = None if within is None else within[i]
        wanted = postprocess.largest_component(mask, connectivity, part)
        np.testing.assert_array_equal(found[i], wanted)


@pytest.mark.parametrize("connectivity", [8, 4])
def test_a_component_that_winds(connectivity):
    path = serpentine(31)
    assert ndimage.label(path)[1] == 1
    for mask in (path, ~path, path[::-1], path.T, path[:, ::-1]):
        (found,) = np.asarray(largest(mask[None], connectivity))
        wanted = postprocess.largest_component(mask, connectivity)
        np.testing.assert_array_equal(found, wanted)


@settings(max_examples=40)
@given(
    maps=hnp.arrays(
        np.float32, (BATCH, SIDE, SIDE), elements=st.sampled_from([0.1, 0.4, 0.8, 1.0])
    )
)
def test_the_component_around_the_highest_pixel(maps):
    masks = maps >= 0.4 * maps.max((1, 2), keepdims=True)
    found = np.asarray(jax.jit(components.around_highest)(maps, masks))
    for one, mask, kept in zip(maps, masks, found, strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        # Of the component and nothing else: without the rest, the largest is it.
        seed = np.zeros_like(mask)
        seed[row, column] = True
        wanted = postprocess.largest_component(mask, 8, seed)
        np.testing.assert_array_equal(kept, wanted)
