import dataclasses

import jax
import numpy as np
import pytest

from mtl_jax import losses
from mtl_jax.training.augment import Augmentation

SIZE, IMAGES = 64, 16
CENTRE = (SIZE - 1) / 2


DEFAULTS = {
    field.name: np.asarray(field.default) for field in dataclasses.fields(Augmentation)
}


@jax.jit
def compiled(options, seed, batch, index):
    return Augmentation(**options)(jax.random.key(seed), batch, index)


def augment(seed, batch, index=None, **options):
    """Augments 16 images; compiled once for all options, which are traced."""
    index = np.arange(IMAGES) if index is None else index
    options = {k: np.asarray(options.get(k, v), v.dtype) for k, v in DEFAULTS.items()}
    return jax.device_get(compiled(options, seed, batch, index))


def blobs(points):
    """A batch with a bright blob at each point, marked as disc, cup and fovea."""
    points = np.asarray(points, np.float32)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    x, y = points.T[..., None, None]
    blob = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 3.0**2))
    colours = np.array([1.0, 0.6, 0.3])
    return {
        "image": (blob[..., None] * colours).astype(np.float32),
        "disc_mask": (blob > 0.2).astype(np.uint8),
        "cup_mask": (blob > 0.5).astype(np.uint8),
        "fovea_xy": points,
        "glaucoma": np.arange(len(points), dtype=np.float32) % 2,
        "has_label": np.ones((len(points), 4), bool),
    }


@pytest.fixture(scope="module")
def batch():
    """Blobs well inside the image but away from its centre."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, IMAGES)
    radius = rng.uniform(6, 12, IMAGES)
    around = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    # On whole pixels, where the masks lie symmetrically about the foveas.
    return blobs(np.round(CENTRE + around))


@pytest.fixture(scope="module")
def photographs():
    """Noise of moderate contrast, with values that strong changes push out of range."""
    rng = np.random.default_rng(1)
    batch = blobs(rng.uniform(20, 40, (IMAGES, 2)))
    shape = (IMAGES, SIZE, SIZE, 3)
    return {**batch, "image": rng.uniform(0.3, 0.6, shape).astype(np.float32)}


def centre_of_mass(maps):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    total = maps.sum((1, 2))
    x, y = ((maps * grid).sum((1, 2)) / total for grid in (columns, rows))
    return np.stack([x, y], axis=1)


def assert_moved_together(after):
    for maps, tolerance in (
        (after["image"].mean(-1), 0.1),
        (after["disc_mask"], 0.5),
        (after["cup_mask"], 0.5),
    ):
        error = np.linalg.norm(centre_of_mass(maps) - after["fovea_xy"], axis=1)
        assert error.max() < tolerance
    assert after["has_label"].all()
    for mask in ("disc_mask", "cup_mask"):
        assert after[mask].dtype == np.uint8
        assert set(np.unique(after[mask])) == {0, 1}


def polar(points):
    x, y = (points - CENTRE).T
    return np.hypot(x, y), np.degrees(np.arctan2(y, x))


def test_the_default_changes_nothing_and_says_so(photographs):
    assert not Augmentation()
    after = augment(0, photographs)
    assert set(after) == set(photographs)
    for key, value in photographs.items():
        np.testing.assert_allclose(after[key], value, atol=1e-6)
        assert after[key].dtype == value.dtype


@pytest.mark.parametrize("field", Augmentation.__dataclass_fields__)
def test_every_field_makes_it_an_augmentation(field):
    value = True if field.startswith("flip") else 0.1
    assert Augmentation(**{field: value})


@pytest.mark.parametrize(
    ("field", "axis"), [("flip_horizontal", 1), ("flip_vertical", 0)]
)
def test_a_flip_turns_some_examples_round_and_leaves_the_others(
    photographs, field, axis
):
    options = {field: True}
    # Asymmetric masks, to be mirrored exactly.
    rng = np.random.default_rng(2)
    before = dict(photographs)
    for mask in ("disc_mask", "cup_mask"):
        before[mask] = rng.integers(0, 2, (IMAGES, SIZE, SIZE), dtype=np.uint8)
    num_flipped = 0
    for seed in range(4):
        after = augment(seed, before, **options)
        for i in range(IMAGES):
            flipped = not np.allclose(after["image"][i], before["image"][i], atol=1e-5)
            num_flipped += flipped

            def turn(array, flipped=flipped):
                return np.flip(array, axis) if flipped else array

            np.testing.assert_allclose(
                after["image"][i], turn(before["image"][i]), atol=1e-5
            )
            for mask in ("disc_mask", "cup_mask"):
                np.testing.assert_array_equal(after[mask][i], turn(before[mask][i]))
            expected = before["fovea_xy"][i].copy()
            if flipped:
                expected[1 - axis] = SIZE - 1 - expected[1 - axis]
            np.testing.assert_allclose(after["fovea_xy"][i], expected, atol=1e-4)
    # 64 fair coins: outside these limits once in some ten thousand times.
    assert 16 < num_flipped < 48


def test_rotation_turns_image_masks_and_fovea_together(batch):
    options = {"rotation": 40.0}
    turns = []
    for seed in range(4):
        after = augment(seed, batch, **options)
        assert_moved_together(after)
        radius, angle = polar(after["fovea_xy"])
        before_radius, before_angle = polar(batch["fovea_xy"])
        np.testing.assert_allclose(radius, before_radius, atol=1e-3)
        turns.append((angle - before_angle + 180) % 360 - 180)
    turns = np.concatenate(turns)
    assert np.abs(turns).max() <= 40.01
    assert turns.min() < -25
    assert turns.max() > 25


def test_scale_enlarges_and_reduces_about_the_centre(batch):
    options = {"scale": 0.5}
    factors = []
    for seed in range(4):
        after = augment(seed, batch, **options)
        assert_moved_together(after)
        radius, angle = polar(after["fovea_xy"])
        before_radius, before_angle = polar(batch["fovea_xy"])
        np.testing.assert_allclose(angle, before_angle, atol=0.01)
        factor = radius / before_radius
        # Areas grow with the square of the factor.
        area = after["disc_mask"].sum((1, 2)) / batch["disc_mask"].sum((1, 2))
        np.testing.assert_allclose(area, factor**2, rtol=0.15)
        factors.append(factor)
    factors = np.concatenate(factors)
    assert 1 / 1.5 - 1e-3 <= factors.min() < 0.8
    assert 1.3 < factors.max() <= 1.5 + 1e-3


def test_shift_moves_along_both_axes(batch):
    options = {"shift": 0.125}
    moves = []
    for seed in range(4):
        after = augment(seed, batch, **options)
        assert_moved_together(after)
        moves.append(after["fovea_xy"] - batch["fovea_xy"])
    moves = np.concatenate(moves)
    assert np.abs(moves).max() <= 8.001
    assert (moves.min(0) < -6).all()
    assert (moves.max(0) > 6).all()
    assert np.abs(np.corrcoef(moves.T)[0, 1]) < 0.5


def test_all_geometry_at_once_moves_everything_together(batch):
    options = {
        "flip_horizontal": True,
        "flip_vertical": True,
        "rotation": 180.0,
        "scale": 0.2,
        "shift": 0.05,
    }
    for seed in range(3):
        after = augment(seed, batch, **options)
        assert_moved_together(after)
        assert np.abs(after["fovea_xy"] - batch["fovea_xy"]).max() > 10
        np.testing.assert_array_equal(after["glaucoma"], batch["glaucoma"])


def assert_geometry_unchanged(after, before):
    for key in ("disc_mask", "cup_mask", "glaucoma", "has_label"):
        np.testing.assert_array_equal(after[key], before[key])
    np.testing.assert_allclose(after["fovea_xy"], before["fovea_xy"], atol=1e-4)


def test_colours_stay_in_range_and_geometry_stays(photographs):
    after = augment(0, photographs, brightness=0.9, contrast=0.9, colour=0.9)
    assert_geometry_unchanged(after, photographs)
    image = after["image"]
    assert image.min() >= 0
    assert image.max() <= 1
    # Strong enough that the range had to be enforced.
    assert (image == 1).any()
    assert not np.allclose(image, photographs["image"], atol=0.1)


def test_brightness_multiplies_an_image_by_one_factor(photographs):
    after = augment(0, photographs, brightness=0.5)
    assert_geometry_unchanged(after, photographs)
    ratio = (after["image"] / photographs["image"]).reshape(IMAGES, -1)
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], ratio.shape[1], 1), 1e-4)
    assert 0.499 < ratio.min() < 0.8
    assert 1.2 < ratio.max() < 1.501


def test_colour_multiplies_every_channel_by_a_factor_of_its_own(photographs):
    after = augment(0, photographs, colour=0.5)
    assert_geometry_unchanged(after, photographs)
    ratio = (after["image"] / photographs["image"]).reshape(IMAGES, -1, 3)
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], ratio.shape[1], 1), 1e-4)
    assert np.ptp(ratio[:, 0], axis=1).min() > 0.01
    assert 0.499 < ratio.min() < 0.8
    assert 1.2 < ratio.max() < 1.501


def test_contrast_stretches_about_the_mean(photographs):
    after = augment(0, photographs, contrast=0.5)
    assert_geometry_unchanged(after, photographs)
    before = photographs["image"].reshape(IMAGES, -1)
    image = after["image"].reshape(IMAGES, -1)
    np.testing.assert_allclose(image.mean(1), before.mean(1), atol=1e-4)
    factor = image.std(1) / before.std(1)
    mean = before.mean(1, keepdims=True)
    expected = mean + factor[:, None] * (before - mean)
    np.testing.assert_allclose(image, expected, atol=1e-4)
    assert 0.499 < factor.min() < 0.8
    assert 1.2 < factor.max() < 1.501


def test_illumination_varies_smoothly_within_each_image(photographs):
    flat = {**photographs, "image": np.full_like(photographs["image"], 0.4)}
    after = augment(0, flat, illumination=1.0)
    assert_geometry_unchanged(after, flat)
    gain = after["image"][..., 0] / 0.4
    np.testing.assert_allclose(after["image"] / 0.4, gain[..., None].repeat(3, -1))
    assert 0.499 < gain.min() < 0.6
    assert 1.8 < gain.max() < 2.001
    # One cycle a side along both axes climbs at most so much from pixel to pixel.
    steepest = 2 * np.pi / SIZE * np.log(2) * 1.01
    for axis in (1, 2):
        assert np.abs(np.diff(np.log(gain), axis=axis)).max() < steepest
    assert np.median(np.ptp(gain, axis=(1, 2))) > 0.5
    assert len(np.unique(gain[:, 0, 0].round(4))) == IMAGES


def test_the_target_map_of_a_fovea_that_leaves_the_image_is_empty():
    before = blobs(np.full((IMAGES, 2), 4.0))
    before["has_label"][::2, 3] = False
    after = augment(0, before, shift=0.4)
    x, y = after["fovea_xy"].T
    far = (np.minimum(x, y) < -6) | (np.maximum(x, y) > SIZE + 5)
    assert 0 < far.sum() < IMAGES
    sigma = 2 / SIZE
    maps = np.asarray(losses.fovea_map(after["fovea_xy"], (SIZE, SIZE), sigma, "point"))
    assert maps[far].max() < np.exp(-(6**2) / 2 / 2**2) + 1e-6
    inside = (np.minimum(x, y) >= 0) & (np.maximum(x, y) <= SIZE - 1)
    assert maps[inside].max((1, 2)).min() > 0.9
    np.testing.assert_array_equal(after["has_label"], before["has_label"])


def test_what_comes_from_outside_the_image_is_black_and_unmarked():
    full = blobs(np.full((IMAGES, 2), CENTRE))
    full["image"] = np.ones_like(full["image"])
    full["disc_mask"] = np.ones_like(full["disc_mask"])
    after = augment(0, full, shift=0.25)
    for i in range(IMAGES):
        dx, dy = after["fovea_xy"][i] - CENTRE
        rows, columns = np.mgrid[:SIZE, :SIZE]
        came_from_x, came_from_y = columns - dx, rows - dy
        outside = (
            (came_from_x <= -1)
            | (came_from_x >= SIZE)
            | (came_from_y <= -1)
            | (came_from_y >= SIZE)
        )
        assert outside.any()
        np.testing.assert_array_equal(after["image"][i][outside], 0)
        np.testing.assert_array_equal(after["disc_mask"][i][outside], 0)
        well_inside = (np.abs(came_from_x - CENTRE) < CENTRE) & (
            np.abs(came_from_y - CENTRE) < CENTRE
        )
        np.testing.assert_allclose(after["image"][i][well_inside], 1, atol=1e-4)
        assert after["disc_mask"][i][well_inside].all()


def test_examples_depend_on_their_index_and_not_on_their_neighbours(photographs):
    options = {"flip_horizontal": True, "rotation": 30.0, "scale": 0.2, "colour": 0.3}
    whole = augment(7, photographs, **options)
    # The second device's share: indices that do not start at zero, other neighbours.
    order = np.array([*range(8, 16), *range(3, 11)])
    part = {k: v[order] for k, v in photographs.items()}
    after = augment(7, part, order, **options)
    for key in whole:
        np.testing.assert_allclose(after[key], whole[key][order], atol=1e-5)


def test_examples_and_keys_have_streams_of_their_own(batch):
    same = {k: np.repeat(v[:1], IMAGES, axis=0) for k, v in batch.items()}
    options = {"rotation": 40.0}
    first, again, other = (augment(seed, same, **options) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert len(np.unique(first["fovea_xy"].round(3), axis=0)) == IMAGES
    assert np.abs(first["fovea_xy"] - other["fovea_xy"]).max() > 0.1
