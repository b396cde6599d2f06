import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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


BOXES = st.tuples(
    st.integers(-50, 60), st.integers(-50, 60), st.integers(5, 90), st.integers(5, 90)
).filter(lambda box: box[0] + box[2] > 0 and box[1] + box[3] > 0)


@given(
    COORDINATES,
    COORDINATES,
    st.tuples(*2 * [st.integers(-3000, 3000)], *2 * [st.integers(30, 6000)]),
    st.tuples(st.integers(16, 1024), st.integers(16, 1024)),
    st.sampled_from(["centre", "corner"]),
)
def test_points_come_back_exactly(x, y, box, size, origin):
    frame = geometry.Frame(*box, (100, 100))
    there = geometry.xy_to_model([x, y], frame, size, origin)
    assert there.dtype == np.float64
    back = geometry.xy_to_native(there, frame, size, origin)
    np.testing.assert_allclose(back, [x, y], rtol=0, atol=1e-9)


@given(BOXES, st.integers(60, 100), st.integers(60, 100))
def test_model_images_show_the_frame_padded_with_black(box, height, width):
    """Against a photograph that NumPy pads and cuts."""
    left, top, *sides = box
    frame = geometry.Frame(*box, (height, width))
    photograph = np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)
    padded = np.pad(photograph, ((60, 200), (60, 200), (0, 0)))
    rows, columns = slice(60 + top, None), slice(60 + left, None)
    cut = padded[rows, columns][: sides[1], : sides[0]]
    for picture in (photograph, Image.fromarray(photograph)):
        shown = geometry.photograph_to_model(picture, frame, (32, 48))
        np.testing.assert_array_equal(shown, geometry.resize_photograph(cut, (32, 48)))
    mask = geometry.mask_to_model(photograph[..., 0], frame, (32, 48))
    np.testing.assert_array_equal(mask, geometry.resize_mask(cut[..., 0], (32, 48)))
    # Without a change of size what is shown comes back as it was, and nothing else.
    back = geometry.picture_to_native(cut, frame)
    shown = np.zeros((height, width), bool)
    shown[
        max(top, 0) : max(top + sides[1], 0), max(left, 0) : max(left + sides[0], 0)
    ] = 1
    np.testing.assert_array_equal(back, np.where(shown[..., None], photograph, 0))


@given(
    st.tuples(st.integers(100, 400), st.integers(100, 400)),
    st.floats(0.2, 0.8),
    st.floats(0.2, 0.8),
    st.tuples(*4 * [st.floats(0, 0.15)]),
)
def test_a_disc_returns_to_its_place(size, x, y, borders):
    """From native mask to model mask and back, with the frame of any part."""
    height, width = size
    left, top = int(borders[0] * width), int(borders[1] * height)
    right, bottom = width - int(borders[2] * width), height - int(borders[3] * height)
    frame = geometry.square((left, top, right, bottom), size)
    assert frame.width == frame.height == max(right - left, bottom - top)
    slack = np.array([frame.width - (right - left), frame.height - (bottom - top)]) // 2
    assert (frame.left, frame.top) == (left - slack[0], top - slack[1])
    centre, radius = np.array([x * width, y * height]), 0.15 * min(size)
    rows, columns = np.indices(size)
    disc = (np.hypot(columns - centre[0], rows - centre[1]) < radius).astype(np.uint8)
    model = geometry.mask_to_model(disc, frame, (128, 128))
    back = geometry.picture_to_native(model.astype(np.float32), frame) >= 0.5
    disc[: max(frame.top, 0)] = disc[:, : max(frame.left, 0)] = 0
    disc[frame.top + frame.height :] = disc[:, frame.left + frame.width :] = 0
    assert back.shape == size
    overlap = 2 * (back & (disc > 0)).sum() / (back.sum() + disc.sum())
    assert overlap > 0.95
    # And the points of the mask are where the point function says.
    seen = geometry.xy_to_model(centre_of_mass(disc), frame, (128, 128))
    np.testing.assert_allclose(centre_of_mass(model), seen, atol=0.5)
