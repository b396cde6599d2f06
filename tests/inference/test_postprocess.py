import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from mtl_jax.data import geometry
from mtl_jax.inference import postprocess

# The machines that run this are shared, so that no example has a time limit.
FAST = settings(deadline=None, max_examples=50)

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
LOGITS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-30, 30),
)


def components_by_flood_fill(mask):
    """Sets of (row, column), in reading order of their first pixels."""
    left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    components = []
    while left:
        todo, component = [min(left)], set()
        while todo:
            pixel = todo.pop()
            if pixel in left:
                left.remove(pixel)
                component.add(pixel)
                r, c = pixel
                todo += [(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        components.append(component)
    return components


def pixels(mask):
    return {(int(r), int(c)) for r, c in np.argwhere(mask)}


@FAST
@given(MASKS)
def test_largest_component_is_the_first_largest_flood_fill(mask):
    kept = postprocess.largest_component(mask)
    assert kept.dtype == np.uint8
    assert kept.shape == mask.shape
    assert set(np.unique(kept)) <= {0, 1}
    components = components_by_flood_fill(mask)
    assert pixels(kept) == max(components, key=len, default=set())


@FAST
@given(MASKS)
def test_largest_component_is_idempotent_and_takes_any_nonzero_as_inside(mask):
    kept = postprocess.largest_component(mask)
    np.testing.assert_array_equal(postprocess.largest_component(kept), kept)
    in_file = 255 * mask.astype(np.uint8)
    np.testing.assert_array_equal(postprocess.largest_component(in_file), kept)


@st.composite
def mask_pairs(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    return draw(hnp.arrays(np.bool_, shape)), draw(hnp.arrays(np.bool_, shape))


@FAST
@given(mask_pairs(), st.sampled_from([8, 4]))
def test_the_largest_part_within_chooses_a_whole_component(pair, connectivity):
    mask, within = pair
    kept = postprocess.largest_component(mask, connectivity, within)
    assert kept.dtype == np.uint8
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    labels, count = ndimage.label(mask, structure)
    parts = ndimage.sum_labels(within, labels, range(1, count + 1))
    if not count or parts.max() == 0:
        assert not kept.any()
        return
    best = 1 + parts.tolist().index(parts.max())
    np.testing.assert_array_equal(kept, labels == best)
    # Nothing changes where all pixels count.
    np.testing.assert_array_equal(
        postprocess.largest_component(mask, connectivity, np.ones_like(mask)),
        postprocess.largest_component(mask, connectivity),
    )


def test_corners_connect():
    assert postprocess.largest_component(np.eye(5)).sum() == 5


def test_probability_of_one_half_is_inside():
    logits = np.array([[0.0, -1e-3], [0.0, 1e-3]])
    np.testing.assert_array_equal(postprocess.segment(logits), [[1, 0], [1, 1]])


def test_extreme_logits_neither_warn_nor_leak():
    logits = np.array([[1e4, -1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(postprocess.segment(logits), [[1, 0]])
        assert postprocess.centre_of_mass(logits) == (0.0, 0.0)


@FAST
@given(LOGITS)
def test_segment_at_own_size_is_threshold_then_largest_component(logits):
    expected = postprocess.largest_component(logits.astype(np.float32) >= 0)
    # Far below single precision 1 / (1 + exp(-x)) rounds to one half.
    near = (np.abs(logits) < 1e-6) & (logits != 0)
    if not near.any():
        np.testing.assert_array_equal(postprocess.segment(logits), expected)
        same_size = postprocess.segment(logits, geometry.whole(logits.shape))
        np.testing.assert_array_equal(same_size, expected)


def disc_logits(size, centre_xy, radius):
    """Logit 0 on the circle, falling by one for each pixel outwards."""
    y, x = np.mgrid[:size, :size]
    return radius - np.hypot(x - centre_xy[0], y - centre_xy[1])


@pytest.mark.parametrize("native", [(512, 512), (411, 389), (300, 500), (64, 64)])
def test_segment_at_native_size_is_the_circle_scaled(native):
    size, centre, radius = 64, (29.3, 34.6), 14.0
    mask = postprocess.segment(
        disc_logits(size, centre, radius), geometry.whole(native)
    )
    assert mask.shape == native
    # The pixel (i, j) of the native image, taken back to the map.
    y, x = np.mgrid[: native[0], : native[1]]
    x_map = (x + 0.5) * size / native[1] - 0.5
    y_map = (y + 0.5) * size / native[0] - 0.5
    circle = np.hypot(x_map - centre[0], y_map - centre[1]) <= radius
    overlap = 2 * np.sum(circle & (mask == 1)) / (circle.sum() + mask.sum())
    assert overlap > 0.98
    # Finer than a map resized as a mask could be: no corner of a model pixel left.
    stray = np.abs(np.hypot(x_map - centre[0], y_map - centre[1])[circle != mask])
    assert np.all(np.abs(stray - radius) < 0.3)


def test_segment_removes_the_smaller_of_two_discs_after_resizing():
    two = np.maximum(disc_logits(64, (20, 20), 8), disc_logits(64, (48, 48), 5))
    mask = postprocess.segment(two, geometry.whole((128, 128)))
    assert mask[41, 41] == 1
    assert not mask[72:, 72:].any()


@FAST
@given(LOGITS)
def test_centre_of_mass_is_the_weighted_mean_of_pixel_positions(logits):
    total = sum_x = sum_y = 0.0
    for y, row in enumerate(logits):
        for x, logit in enumerate(row):
            probability = 1 / (1 + math.exp(-logit))
            total += probability
            sum_x += probability * x
            sum_y += probability * y
    found = postprocess.centre_of_mass(logits)
    assert all(type(number) is float for number in found)
    np.testing.assert_allclose(found, (sum_x / total, sum_y / total), atol=1e-9)


def test_centre_of_mass_without_mass_is_the_image_centre():
    logits = np.full((5, 8), -np.inf)
    assert postprocess.centre_of_mass(logits) == (3.5, 2.0)
    assert postprocess.centre_of_mass(logits.astype(np.float32)) == (3.5, 2.0)


@FAST
@given(LOGITS)
def test_a_peak_is_what_hangs_together_around_the_maximum(logits):
    x, y = postprocess.centre_of_mass(logits, "peak")
    probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    inside = probability >= probability.max() / 3
    peak = {np.unravel_index(probability.argmax(), probability.shape)}
    while True:
        around = {
            (i + di, j + dj)
            for i, j in peak
            for di in (-1, 0, 1)
            for dj in (-1, 0, 1)
            if 0 <= i + di < inside.shape[0] and 0 <= j + dj < inside.shape[1]
        }
        more = {place for place in around if inside[place]}
        if more <= peak:
            break
        peak |= more
    rows, columns = np.array(sorted(peak)).T
    weights = probability[rows, columns]
    assert x == pytest.approx(np.average(columns, weights=weights), abs=1e-6)
    assert y == pytest.approx(np.average(rows, weights=weights), abs=1e-6)


def test_a_low_probability_everywhere_draws_the_map_but_not_its_peak():
    logits = np.full((64, 64), -4.0)
    logits[8:13, 38:43] = 3.0
    far = postprocess.centre_of_mass(logits)
    assert np.hypot(far[0] - 40, far[1] - 10) > 10
    assert postprocess.centre_of_mass(logits, "peak") == pytest.approx((40, 10))


def test_centre_of_mass_is_x_then_y():
    logits = np.full((5, 8), -100.0)
    logits[1, 6] = 0.0
    np.testing.assert_allclose(postprocess.centre_of_mass(logits), (6, 1), atol=1e-9)


@FAST
@given(MASKS)
def test_mask_height_counts_columns(mask):
    heights = [sum(1 for row in mask if row[x]) for x in range(mask.shape[1])]
    assert postprocess.mask_height(mask) == max(heights)
    assert postprocess.mask_height(255 * mask.astype(np.uint8)) == max(heights)


def test_vertical_cdr_is_of_heights_not_widths_or_areas():
    disc, cup = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    disc[10:30, 5:55] = 1
    cup[14:22, 20:25] = 1
    expected = 8 / (20 + 1e-7)
    assert postprocess.vertical_cdr(disc, cup) == pytest.approx(expected, abs=1e-12)
    assert postprocess.vertical_cdr(disc, 0 * cup) == 0
    assert postprocess.vertical_cdr(0 * disc, 0 * cup) == 0
