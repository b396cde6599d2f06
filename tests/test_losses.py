import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mtl_jax import losses

IMAGES = 6

logit_vectors = hnp.arrays(np.float32, IMAGES, elements=st.floats(-30, 30, width=32))
loss_vectors = hnp.arrays(np.float32, IMAGES, elements=st.floats(0, 100, width=32))
bool_vectors = hnp.arrays(np.bool_, IMAGES)


def log_sigmoid(x):
    return -np.logaddexp(0, -np.asarray(x, np.float64))


def sigmoid(x):
    return np.exp(log_sigmoid(x))


@given(logit_vectors, bool_vectors, st.sampled_from([0.0, 1.0, 2.0, 3.5]))
def test_focal_loss_is_lins_formula(logits, labels, gamma):
    sign = np.where(labels, 1, -1)
    missing = sigmoid(-sign * logits)
    expected = -(missing**gamma) * log_sigmoid(sign * logits)
    actual = losses.focal_loss(logits, labels.astype(np.float32), gamma)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_focal_loss_discounts_by_gamma_two_by_default():
    logits, labels = jnp.array([0.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 1.0])
    right = sigmoid(2.0)
    expected = [np.log(2) / 4, np.log(2) / 4, -((1 - right) ** 2) * np.log(right)]
    np.testing.assert_allclose(losses.focal_loss(logits, labels), expected, rtol=1e-5)


def test_focal_loss_has_finite_gradients_at_certain_predictions():
    logits = jnp.array([-1e4, -100.0, 100.0, 1e4])
    for label in (0.0, 1.0):
        gradient = jax.grad(
            lambda x, label=label: losses.focal_loss(x, jnp.full(4, label)).sum()
        )(logits)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("target", [0, 1])
def test_a_batch_of_one_class_has_finite_losses_and_gradients(target, dtype):
    """Nothing positive, or nothing else, whatever the network says of it."""

    def total(logits):
        vector = losses.focal_loss(logits[:, 0, 0], jnp.full(5, target, dtype))
        targets = jnp.full(logits.shape, target, dtype)
        dense = losses.pixel_cross_entropy(logits, targets)
        return (vector + dense + losses.heatmap_l1(logits, targets)).sum()

    extremes = jnp.array([-1e4, -30.0, 0.0, 30.0, 1e4], dtype)
    logits = jnp.broadcast_to(extremes[:, None, None], (5, 4, 4))
    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
    # Each is lowered by logits of the target's sign.
    assert ((np.asarray(gradient, np.float32) * (1 - 2 * target)) >= 0).all()


def test_pixel_cross_entropy_is_the_mean_over_the_pixels_of_each_image():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (3, 5, 7)).astype(np.float32)
    masks = rng.integers(0, 2, (3, 5, 7), dtype=np.uint8)
    expected = np.zeros(3)
    for image in range(3):
        for row in range(5):
            for column in range(7):
                z = logits[image, row, column]
                inside = masks[image, row, column] == 1
                expected[image] -= log_sigmoid(z if inside else -z) / 35
    actual = losses.pixel_cross_entropy(logits, masks)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_heatmap_l1_means_or_sums_over_the_pixels_of_each_image():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (3, 5, 7)).astype(np.float32)
    targets = rng.uniform(0, 1, (3, 5, 7)).astype(np.float32)
    distance = np.abs(sigmoid(logits) - targets).reshape(3, -1)
    np.testing.assert_allclose(
        losses.heatmap_l1(logits, targets), distance.mean(1), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.heatmap_l1(logits, targets, "sum"), distance.sum(1), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("loss", "first", "second"),
    [
        (losses.focal_loss, (4,), (4, 1)),
        (losses.pixel_cross_entropy, (2, 4, 4), (2, 4, 4, 1)),
        (losses.heatmap_l1, (2, 4, 4), (1, 4, 4)),
        (losses.masked_mean, (4,), (4, 1)),
    ],
)
def test_losses_refuse_to_broadcast(loss, first, second):
    with pytest.raises(AssertionError):
        loss(jnp.zeros(first), jnp.zeros(second))


@given(
    st.tuples(st.integers(0, 19), st.integers(0, 11)),
    st.floats(0.02, 0.3),
)
def test_fovea_map_is_a_gaussian_with_maximum_one(point, sigma):
    x, y = point
    actual = np.asarray(losses.fovea_map(jnp.array([[x, y]], float), (12, 20), sigma))
    assert actual.shape == (1, 12, 20)
    rows, columns = np.mgrid[:12, :20]
    square = (columns - x) ** 2 + (rows - y) ** 2
    expected = np.exp(-square / (2 * (sigma * 20) ** 2))
    np.testing.assert_allclose(actual[0], expected, rtol=1e-4, atol=1e-7)
    assert actual[0, y, x] == actual.max() == 1


@given(st.floats(-3, 23), st.floats(-3, 15), st.floats(0.02, 0.3))
def test_fovea_map_with_its_peak_at_a_pixel_is_divided_by_its_maximum(x, y, sigma):
    rows, columns = np.mgrid[:12, :20]
    square = (columns - x) ** 2 + (rows - y) ** 2
    # In logarithms: far from the image every sample is too small for a float.
    expected = np.exp((square.min() - square) / (2 * (sigma * 20) ** 2))
    xy = jnp.array([[x, y]])
    actual = np.asarray(losses.fovea_map(xy, (12, 20), sigma, "pixel"))[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)
    assert actual.max() == 1


def test_fovea_maps_differ_by_less_than_half_a_percent():
    """At 256 pixels: a peak half a pixel off both ways is exp(-0.25 / 50) of one."""
    xy = jnp.array([[100.5, 90.5], [100.0, 90.0]])
    point, pixel = (
        np.asarray(losses.fovea_map(xy, (256, 256), peak=peak))
        for peak in ("point", "pixel")
    )
    difference = np.abs(pixel - point).max((1, 2))
    np.testing.assert_allclose(difference, [1 - np.exp(-0.25 / 50), 0], atol=1e-5)


def test_fovea_map_is_isotropic_also_on_a_map_that_is_not_square():
    size, sigma = (24, 48), 0.1
    wide = np.asarray(losses.fovea_map(jnp.array([[20.0, 12.0]]), size, sigma))[0]
    for distance in range(1, 11):
        ring = [
            wide[12, 20 + distance],
            wide[12, 20 - distance],
            wide[12 + distance, 20],
            wide[12 - distance, 20],
        ]
        np.testing.assert_allclose(ring, ring[0], rtol=1e-5)
    # One standard deviation is 0.1 * 48 pixels, between the fourth and the fifth.
    assert wide[12, 24] > np.exp(-0.5) > wide[12, 25]


def test_fovea_map_has_the_authors_variance_by_default():
    authors = np.asarray(losses.fovea_map(jnp.array([[100.0, 90.0]]), (256, 256)))[0]
    np.testing.assert_allclose(authors[90, 110], np.exp(-100 / (2 * 50)), rtol=1e-4)
    np.testing.assert_allclose(authors[83, 101], np.exp(-50 / (2 * 50)), rtol=1e-4)


def test_fovea_map_takes_points_between_and_outside_the_pixels():
    maps = np.asarray(losses.fovea_map(jnp.array([[3.5, 2.0], [-500, 9]]), (8, 8)))
    assert maps[0, 2, 3] == maps[0, 2, 4] == maps[0].max()
    np.testing.assert_array_equal(maps[1], 0)


@given(loss_vectors, bool_vectors)
def test_masked_mean_is_the_mean_over_the_labelled_images(values, mask):
    expected = values[mask].mean(dtype=np.float64) if mask.any() else 0.0
    np.testing.assert_allclose(
        losses.masked_mean(values, mask), expected, rtol=1e-5, atol=1e-6
    )
    gradient = jax.grad(losses.masked_mean)(values, mask)
    np.testing.assert_allclose(gradient, mask / max(mask.sum(), 1), rtol=1e-6)


@given(loss_vectors, bool_vectors, st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
def test_masked_mean_never_sees_an_unlabelled_value(values, mask, rubbish):
    value_and_gradient = jax.value_and_grad(losses.masked_mean)
    value, gradient = value_and_gradient(values, mask)
    spoilt = np.where(mask, values, np.float32(rubbish))
    spoilt_value, spoilt_gradient = value_and_gradient(spoilt, mask)
    assert value == spoilt_value
    np.testing.assert_array_equal(gradient, spoilt_gradient)


def test_masked_mean_of_nothing_is_zero_with_zero_gradient():
    value, gradient = jax.value_and_grad(losses.masked_mean)(
        jnp.full(4, jnp.nan), jnp.zeros(4, bool)
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@given(
    hnp.arrays(np.float32, (3, IMAGES), elements=st.floats(0, 100, width=32)),
    hnp.arrays(np.bool_, (3, IMAGES)),
)
def test_shares_of_a_batch_add_up_to_the_mean_and_its_gradient(values, mask):
    def share(values, own):
        return losses.masked_mean(values, own, mask.sum())

    shares, gradients = jax.vmap(jax.value_and_grad(share))(values, mask)
    together, gradient = jax.value_and_grad(losses.masked_mean)(
        values.ravel(), mask.ravel()
    )
    np.testing.assert_allclose(shares.sum(), together, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients.ravel(), gradient, rtol=1e-6)
