import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.training import views

SIZE = 48
crop = jax.jit(views.crop, static_argnums=2)
paste = jax.jit(views.paste, static_argnums=2)
around = jax.jit(views.around)
zoomed = jax.jit(views.View("whole", size=32, zoom=4.0))


def box(left, top, width, height):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


BOXES = st.tuples(*2 * [st.integers(0, SIZE - 2)], *2 * [st.integers(1, SIZE)]).map(
    lambda b: (b[0], b[1], min(b[2], SIZE - b[0]), min(b[3], SIZE - b[1]))
)


@given(BOXES, st.floats(1, 4))
def test_a_window_is_a_square_around_the_mask_inside_of_the_image(mask, margin):
    left, top, width, height = mask
    x, y, side = map(float, around(box(*mask)[None], margin)[0])
    assert side == pytest.approx(min(margin * max(width, height), SIZE), rel=1e-5)
    tolerance = 1e-4
    assert -tolerance <= x <= SIZE - side + tolerance
    assert -tolerance <= y <= SIZE - side + tolerance
    # The mask is in it, and in its middle unless the image's edge forbids it.
    assert x <= left + tolerance
    assert y <= top + tolerance
    assert x + side >= left + width - tolerance
    assert y + side >= top + height - tolerance
    for start, length, place in ((left, width, x), (top, height, y)):
        middle = start + length / 2
        if side / 2 < middle < SIZE - side / 2:
            assert place + side / 2 == pytest.approx(middle, abs=tolerance)


def test_no_mask_no_crop():
    windows = around(np.zeros((2, SIZE, SIZE)), 2.0)
    np.testing.assert_array_equal(windows, [[0, 0, SIZE]] * 2)


def test_a_window_on_pixel_edges_is_a_slice():
    image = np.random.default_rng(0).uniform(size=(1, SIZE, SIZE, 3)).astype("f4")
    found = crop(image, jnp.float32([[8, 20, 16]]), 16)
    np.testing.assert_allclose(found, image[:, 20:36, 8:24], atol=1e-6)
    # At twice the size as Pillow and PyTorch enlarge, at half the size as they reduce.
    wanted = jax.image.resize(image[:, 20:36, 8:24], (1, 32, 32, 3), "linear")
    found = crop(image, jnp.float32([[8, 20, 16]]), 32)
    inside = slice(2, -2)
    np.testing.assert_allclose(
        found[:, inside, inside], wanted[:, inside, inside], atol=1e-5
    )


@given(st.floats(0, 16), st.floats(0, 16), st.floats(16, 30))
def test_pasting_puts_a_crop_back(left, top, side):
    ys, xs = np.mgrid[:SIZE, :SIZE].astype("f4")
    # Linear maps come through bilinear interpolation unharmed.
    maps = (0.3 * xs - 0.2 * ys)[None]
    windows = jnp.float32([[left, top, side]])
    seen = crop(maps[..., None], windows, 32)[..., 0]
    back = np.asarray(paste(seen, windows, SIZE))[0]
    centres = np.arange(SIZE) + 0.5
    rows = (centres >= top) & (centres <= top + side)
    columns = (centres >= left) & (centres <= left + side)
    inside = rows[:, None] & columns[None]
    np.testing.assert_array_equal(back[~inside], views.OUTSIDE)
    # Near its edge a crop is extrapolated by its nearest pixels; elsewhere a filter
    # that reduces may be off by a tenth of a pixel or so.
    inner = np.zeros_like(inside)
    inner[np.ix_(rows.nonzero()[0][2:-2], columns.nonzero()[0][2:-2])] = True
    np.testing.assert_allclose(back[inner], maps[0][inner], atol=0.05)


@pytest.mark.parametrize("window", [(22, 10.5, 26), (30, 16.5, 18), (15.5, 24.5, 10)])
def test_nothing_appears_at_the_edges_of_a_crop(window):
    """Edges through the middle of pixels, which rounding puts on either side."""
    pasted = paste(jnp.full((1, 32, 32), -3.0), jnp.float32([window]), SIZE)
    assert pasted.max() <= -3 + 3e-4


def batch_of(n=4):
    rng = np.random.default_rng(0)
    masks = np.stack([box(10 + i, 14, 9, 11) for i in range(n)])
    return {
        "image": rng.uniform(size=(n, SIZE, SIZE, 3)).astype("f4"),
        "disc_mask": masks,
        "cup_mask": np.stack([box(13 + i, 17, 3, 4) for i in range(n)]),
        # In the middle of the disc.
        "fovea_xy": np.float32([[14 + i, 19] for i in range(n)]),
        "has_label": np.ones((n, 4), bool),
        "glaucoma": np.zeros(n, np.float32),
    }


def centre_of_mass(mask):
    ys, xs = np.nonzero(np.asarray(mask))
    return xs.mean(), ys.mean()


@pytest.mark.parametrize("kind", ["whole", "crop"])
def test_masks_and_fovea_move_with_the_image(kind):
    view = views.View(kind, size=32, margin=2.0, jitter=0.2)
    seen = jax.jit(view)(jax.random.key(0), batch_of(), jnp.arange(4))
    assert seen["image"].shape == (4, 32, 32, 3)
    assert seen["disc_mask"].shape == seen["cup_mask"].shape == (4, 32, 32)
    assert seen["disc_mask"].dtype == np.uint8
    for i in range(4):
        point = np.asarray(seen["fovea_xy"][i])
        np.testing.assert_allclose(
            point, centre_of_mass(seen["disc_mask"][i]), atol=0.75
        )
    share = np.asarray(seen["disc_mask"]).mean((1, 2))
    if kind == "whole":
        np.testing.assert_allclose(share, 99 / SIZE**2, rtol=0.1)
    else:
        # 9 x 11 in 22 x 22, which is moved and scaled by up to a fifth.
        assert (share > 0.204 / 1.2**2 * 0.9).all()
        assert (share < 0.204 / 0.8**2 * 1.1).all()
        assert len(np.unique(share)) > 1


def test_what_is_seen_of_an_image_does_not_depend_on_its_neighbours():
    view = views.View("crop", size=32, jitter=0.2)
    look = jax.jit(view)
    everything = look(jax.random.key(1), batch_of(), jnp.arange(4))
    last = {key: value[3:] for key, value in batch_of().items()}
    alone = look(jax.random.key(1), last, jnp.arange(3, 4))
    np.testing.assert_allclose(alone["image"][0], everything["image"][3], atol=3e-6)


def test_given_windows_take_the_place_of_true_discs():
    batch = {**batch_of(2), "window": jnp.float32([[1, 2, 30], [0, 0, 48]])}
    view = views.View("crop", size=32)
    np.testing.assert_array_equal(view.windows(batch), batch["window"])
    np.testing.assert_array_equal(
        views.View("whole", size=32).windows(batch), [[0, 0, SIZE]] * 2
    )


@given(BOXES, st.integers(0, 2**32 - 1))
def test_close_ups_hold_the_disc(mask, seed):
    left, top, width, height = mask
    count = 30
    batch = batch_of(1) | {"disc_mask": box(*mask)[None]}
    batch = {key: np.repeat(value[:1], count, 0) for key, value in batch.items()}
    # Where the pixels of the image come from is written in them.
    ys, xs = np.mgrid[:SIZE, :SIZE].astype("f4") + 0.5
    batch["image"] = np.stack([np.stack([xs, ys, xs], -1)] * count)
    seen = zoomed(jax.random.key(seed), batch, jnp.arange(count))
    x, y = np.asarray(seen["image"][..., 0]), np.asarray(seen["image"][..., 1])
    # At the image's edges pixels repeat, so that only those within tell.
    side = (x[:, 16, -5] - x[:, 16, 4]) * 32 / 23
    is_close = side < 0.98 * SIZE
    least = max(SIZE / 4, 1.1 * max(width, height))
    assert (side >= min(least, SIZE) * 0.98).all()
    starts = [(m[:, 4, 4] + m[:, -5, -5] - side) / 2 for m in (x, y)]
    for start, first, length in zip(starts, (left, top), (width, height), strict=True):
        assert (start >= -0.1).all()
        assert (start + side <= SIZE + 0.1).all()
        assert (start[is_close] <= first + 0.6).all()
        assert (start[is_close] + side[is_close] >= first + length - 0.6).all()


def test_a_third_of_the_images_are_close_ups_of_any_size():
    count = 600
    batch = {key: np.repeat(value, 150, 0) for key, value in batch_of(4).items()}
    for empty in (False, True):
        if empty:
            batch["disc_mask"] = np.zeros_like(batch["disc_mask"])
        batch["image"] = np.zeros((count, SIZE, SIZE, 3), np.float32)
        batch["image"][:] = np.mgrid[:SIZE, :SIZE][1][..., None] + 0.5
        seen = np.asarray(zoomed(jax.random.key(3), batch, jnp.arange(count))["image"])
        side = (seen[:, 16, -5, 0] - seen[:, 16, 4, 0]) * 32 / 23
        close = side < 0.98 * SIZE
        assert 0.27 < close.mean() < 0.40
        # As many between 1 and 2 times as between 2 and 4; discs of 11 pixels bound.
        assert 0.4 < (side[close] > SIZE / 2).mean() < 0.6
        assert side.min() > 0.97 * SIZE / 4


@pytest.mark.parametrize("kind", ["whole", "crop"])
def test_a_part_that_may_not_show_the_disc_has_no_diagnosis(kind):
    count = 60
    batch = {key: np.repeat(value, 15, 0) for key, value in batch_of(4).items()}
    is_annotated = np.arange(count) % 2 == 0
    batch["has_label"][:, 1] = is_annotated
    batch["disc_mask"][~is_annotated] = 0
    view = views.View(kind, size=32, zoom=4.0)
    batch["image"][:] = np.mgrid[:SIZE, :SIZE][1][..., None] + 0.5
    seen = jax.jit(view)(jax.random.key(3), batch, jnp.arange(count))
    image = np.asarray(seen["image"])
    is_part = (image[:, 16, -5, 0] - image[:, 16, 4, 0]) * 32 / 23 < 0.98 * SIZE
    if kind == "whole":
        assert 0 < (is_part & ~is_annotated).sum() < (~is_annotated).sum()
        np.testing.assert_array_equal(seen["has_label"][:, 0], is_annotated | ~is_part)
    else:
        np.testing.assert_array_equal(seen["has_label"][:, 0], is_annotated)
    np.testing.assert_array_equal(seen["has_label"][:, 1:], batch["has_label"][:, 1:])
