import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.data import geometry

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
COORDINATES = st.floats(-1e4, 1e4)


@settings(deadline=None)
@given(COORDINATES, COORDINATES, SIZES, SIZES)
def test_rescaling_back_is_the_inverse(x, y, size, other):
    there = geometry.rescale_xy(np.array([x, y]), size, other)
    back = geometry.rescale_xy(there, other, size)
    # The half-pixel offset loses an absolute rounding error, magnified on the way back.
    magnified = max(size[0] / other[0], size[1] / other[1], 1)
    np.testing.assert_allclose(back, [x, y], rtol=1e-12, atol=1e-12 * magnified)


@settings(deadline=None)
@given(SIZES, SIZES)
def test_rescaling_carries_edges_to_edges(size, other):
    edges = np.array([[-0.5, -0.5], [size[1] - 0.5, size[0] - 0.5]])
    expected = np.array([[-0.5, -0.5], [other[1] - 0.5, other[0] - 0.5]])
    np.testing.assert_allclose(
        geometry.rescale_xy(edges, size, other), expected, rtol=1e-12
    )


def test_rescaling_keeps_leading_axes():
    points = np.zeros((4, 5, 2))
    assert geometry.rescale_xy(points, (10, 20), (30, 30)).shape == (4, 5, 2)


def centre_of_mass(weights):
    y, x = np.indices(weights.shape)
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("size", [(512, 384), (100, 300), (64, 64), (700, 333)])
@pytest.mark.parametrize("to_size", [(256, 256), (64, 128)])
def test_resizing_puts_a_blob_where_rescaling_says(size, to_size):
    height, width = size
    xy = np.array([0.62 * width, 0.43 * height])
    y, x = np.indices(size)
    distance = np.hypot((x - xy[0]) / width, (y - xy[1]) / height)
    expected = geometry.rescale_xy(xy, size, to_size)

    blob = np.round(255 * np.exp(-0.5 * (distance / 0.08) ** 2)).astype(np.uint8)
    photograph = np.repeat(blob[..., None], 3, axis=-1)
    resized = geometry.resize_photograph(photograph, to_size)
    assert resized.shape == (*to_size, 3)
    drift = centre_of_mass(resized[..., 1].astype(float)) - expected
    assert np.abs(drift).max() < 0.05

    mask = (distance < 0.2).astype(np.uint8)
    resized = geometry.resize_mask(mask, to_size)
    assert resized.shape == to_size
    assert set(np.unique(resized)) == {0, 1}
    # Nearest neighbour moves an edge by up to half a native pixel.
    drift = centre_of_mass(resized) - expected
    bound = 0.5 * max(to_size[0] / height, to_size[1] / width)
    assert np.abs(drift).max() < max(bound, 0.25)


@settings(deadline=None)
@given(COORDINATES, COORDINATES, SIZES, SIZES)
def test_from_the_corner_points_are_multiplied(x, y, size, other):
    there = geometry.rescale_xy([x, y], size, other, "corner")
    expected = [x * other[1] / size[1], y * other[0] / size[0]]
    np.testing.assert_allclose(there, expected, rtol=1e-12)
    back = geometry.rescale_xy(there, other, size, "corner")
    np.testing.assert_allclose(back, [x, y], rtol=1e-12)
    ours = geometry.rescale_xy([x, y], size, other)
    scale = np.array([other[1] / size[1], other[0] / size[0]])
    np.testing.assert_allclose(there - ours, (1 - scale) / 2, rtol=1e-9, atol=1e-6)
