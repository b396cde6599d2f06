import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import convolution

# Narrow ones compute some columns at once, also for the weight gradient of at most 16
# images. Where there are fewer outputs than inputs, images exchange roles. The kernels
# of the fourth and of the last three are larger than the images.
SHAPES = [
    (2, 8, 8, 3, 5),
    (1, 6, 10, 4, 4),
    (3, 5, 3, 1, 7),
    (2, 1, 4, 6, 2),
    (2, 3, 9, 8, 6),
    (2, 5, 12, 16, 8),
    (2, 5, 12, 17, 8),
    (1, 2, 32, 1, 1),
    (8, 4, 6, 8, 8),
    (17, 4, 4, 3, 5),
    (2, 4, 4, 24, 16),
    (2, 2, 4, 128, 63),
    (3, 4, 1, 9, 20),
]
# Whose weight gradient is Winograd's: in blocks of rows, of one row, of two images, and
# of three, the last of which has one of zeros; in a single block.
LARGE_SHAPES = [
    (2, 32, 40, 32, 33),
    (1, 4, 320, 33, 32),
    (4, 12, 14, 64, 65),
    (5, 12, 10, 64, 64),
    (1, 32, 32, 33, 32),
]
# Whose values and input gradients are Winograd's, too. The last two have few pixels, so
# that the values are not. The last has its weight gradient in a single block.
DEEP_SHAPES = [
    (8, 16, 16, 64, 65),
    (6, 24, 15, 64, 64),
    (128, 4, 4, 64, 64),
    (2, 32, 32, 256, 64),
    (3, 12, 9, 64, 70),
    (2, 16, 16, 64, 64),
]
# Not these: the number of rows is odd.
ODD_SHAPE = (10, 13, 16, 64, 64)


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def lax_convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def convolution_and_gradients(convolution, x, kernel, cotangent):
    y, pull_back = jax.vjp(convolution, x, kernel)
    return y, *pull_back(cotangent)


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(
    "shape", [*SHAPES, *LARGE_SHAPES, *DEEP_SHAPES, ODD_SHAPE], ids=str
)
def test_conv_3x3_has_the_values_and_gradients_of_lax(shape, cores, monkeypatch):
    monkeypatch.setattr(convolution.machine, "num_cores", lambda: cores)
    jax.clear_caches()  # JAX would not trace a function again.
    batch, height, width, inputs, outputs = shape
    x = random_array(batch, height, width, inputs, seed=1)
    kernel = random_array(3, 3, inputs, outputs, seed=2)
    cotangent = random_array(batch, height, width, outputs, seed=3)
    actual, expected = (
        convolution_and_gradients(f, x, kernel, cotangent)
        for f in (convolution.conv_3x3, lax_convolution)
    )
    for ours, theirs in zip(actual, expected, strict=True):
        atol = (5e-6 if shape in DEEP_SHAPES else 1e-6) * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    "shape",
    [(2, 8, 6, 4, 5), (3, 4, 1, 9, 20), LARGE_SHAPES[0], DEEP_SHAPES[0]],
    ids=str,
)
def test_conv_3x3_in_bfloat16_is_near_float32(shape):
    batch, height, width, inputs, outputs = shape
    arrays = [
        random_array(batch, height, width, inputs),
        random_array(3, 3, inputs, outputs),
        random_array(batch, height, width, outputs),
    ]
    half = [jnp.asarray(a, jnp.bfloat16) for a in arrays]
    actual = convolution_and_gradients(convolution.conv_3x3, *half)
    expected = convolution_and_gradients(lax_convolution, *arrays)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(
            np.asarray(ours, np.float32) / scale, theirs / scale, atol=0.03
        )


def test_conv_3x3_of_an_empty_batch():
    for side, channels in [(4, 3), (32, 32), (64, 64)]:
        x, kernel = (0, side, side, channels), (3, 3, channels, channels)
        y, of_x, of_kernel = convolution_and_gradients(
            convolution.conv_3x3, jnp.zeros(x), jnp.ones(kernel), jnp.zeros(x)
        )
        assert y.shape == of_x.shape == x
        np.testing.assert_array_equal(of_kernel, np.zeros(kernel))


def test_conv_3x3_is_that_of_lax_for_an_accelerator():
    """Also where the program is compiled on a machine without one."""

    def count(platform, side, channels):
        image, kernel = (1, side, side, channels), (3, 3, channels, channels)
        arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (image, kernel, image)]
        step = jax.jit(lambda *a: convolution_and_gradients(convolution.conv_3x3, *a))
        program = step.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        return program.count("stablehlo.convolution"), program.count("stablehlo.while")

    for size in [(32, 32), (64, 64)]:
        assert count("tpu", *size) == count("cuda", *size) == (3, 0)
    assert count("cpu", 16, 64) == (2, 0)
    assert count("cpu", 32, 32) == (2, 1)
    assert count("cpu", 32, 64) == (1, 2)
    assert count("cpu", 64, 64) == (12, 2)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3, 5), DEEP_SHAPES[0]], ids=str)
def test_predictions_have_the_convolution_of_lax(shape):
    batch, height, width, inputs, outputs = shape
    x = random_array(batch, height, width, inputs)
    kernel = random_array(3, 3, inputs, outputs)
    actual, expected = (
        jax.jit(f)(x, kernel) for f in (convolution.conv_3x3, lax_convolution)
    )
    np.testing.assert_array_equal(actual, expected)


def test_conv_3x3_pads_with_zeros_and_does_not_flip_the_kernel():
    x = random_array(1, 4, 5, 1)[0, ..., 0]
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 2] = 1  # The pixel above to the right.
    y = np.asarray(convolution.conv_3x3(x[None, ..., None], kernel))[0, ..., 0]
    np.testing.assert_allclose(y[1:, :-1], x[:-1, 1:])
    np.testing.assert_array_equal(y[0], 0)
    np.testing.assert_array_equal(y[:, -1], 0)
