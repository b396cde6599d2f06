"""Outlines of masks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path

from mtl_jax.inference import outlines


def filled(lines, shape):
    """Pixels inside an odd number of outlines."""
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    points = np.stack([xs.ravel(), ys.ravel()], -1)
    inside = np.zeros(len(points), int)
    for line in lines:
        inside += Path(line).contains_points(points)
    return (inside % 2 == 1).reshape(shape)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_filled_outlines_are_the_mask(seed, density):
    mask = np.random.default_rng(seed).random((9, 12)) < density
    lines = outlines.trace(mask)
    assert (filled(lines, mask.shape) == mask).all()
    for line in lines:
        assert (line[0] == line[-1]).all()


def test_nothing_to_trace():
    assert outlines.trace(np.zeros((4, 4))) == []
