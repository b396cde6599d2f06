import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.models import layers


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 3, 5, 2), (1, 1, 2, 1)], ids=str)
def test_upsample_interpolates_with_aligned_corners(shape):
    x = random_array(*shape)
    batch, height, width, channels = shape
    rows = np.linspace(0, height - 1, 2 * height)
    columns = np.linspace(0, width - 1, 2 * width)
    tall = np.zeros((batch, 2 * height, width, channels))
    expected = np.zeros((batch, 2 * height, 2 * width, channels))
    for b in range(batch):
        for c in range(channels):
            for j in range(width):
                tall[b, :, j, c] = np.interp(rows, np.arange(height), x[b, :, j, c])
            for i in range(2 * height):
                expected[b, i, :, c] = np.interp(
                    columns, np.arange(width), tall[b, i, :, c]
                )
    actual = np.asarray(layers.upsample(x))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    corners = np.ix_(range(batch), [0, -1], [0, -1], range(channels))
    np.testing.assert_allclose(actual[corners], x[corners], atol=1e-6)


def test_upsample_keeps_the_dtype():
    assert layers.upsample(jnp.ones((1, 2, 2, 1), jnp.bfloat16)).dtype == jnp.bfloat16


def test_max_pool_has_the_values_and_gradient_of_flax():
    # No two values are equal: how a gradient is shared among equals is not fixed.
    x = np.random.default_rng(0).permutation(2 * 6 * 8 * 3).reshape(2, 6, 8, 3) / 7.0
    cotangent = random_array(2, 3, 4, 3)
    actual, pull_back = jax.vjp(layers.max_pool, x.astype(np.float32))
    expected, flax_pull_back = jax.vjp(
        lambda x: nn.max_pool(x, (2, 2), (2, 2)), x.astype(np.float32)
    )
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(*pull_back(cotangent), *flax_pull_back(cotangent))


def test_gradient_of_a_maximum_that_xla_computes_twice():
    """With few optimizations, XLA's second computation has other last bits."""
    layer, x = layers.ConvNorm(4), random_array(4, 8, 8, 3)
    variables = layer.init(jax.random.key(0), x, train=True)
    params = jax.tree.map(lambda x: x + 1e-3 * jnp.cos(x), variables["params"])

    def maxima(params):
        y, _ = layer.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return layers.global_max_pool(y).sum(0)

    def gradients(params):
        _, pull_back = jax.vjp(maxima, params)
        return jax.lax.map(pull_back, jnp.eye(4))

    # As all tests do, it compiles with few optimizations.
    found = jax.jit(gradients)(params)
    with jax.disable_jit():
        expected = gradients(params)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3),
        found,
        expected,
    )


def test_the_first_of_equals_has_the_gradient():
    x = jnp.ones((1, 4, 4, 2))
    gradient = np.array(jax.grad(lambda x: layers.max_pool(x).sum())(x))
    assert (gradient[:, ::2, ::2] == 1).all()
    assert gradient.sum() == 8
    gradient = np.array(jax.grad(lambda x: layers.global_max_pool(x).sum())(x))
    assert (gradient[:, 0, 0] == 1).all()
    assert gradient.sum() == 2
    # Of the second row's first and the first row's second, as in PyTorch.
    x = jnp.array([[1.0, 2.0], [2.0, 1.0]]).reshape(1, 2, 2, 1)
    for pool in (layers.max_pool, layers.global_max_pool):
        gradient = jax.grad(lambda x, pool=pool: pool(x).sum())(x)
        np.testing.assert_array_equal(gradient.ravel(), [0, 1, 0, 0])


def test_maxima_keep_nan():
    for place in range(4):
        x = jnp.ones(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert np.isnan(layers.max_pool(x)).all()
        assert np.isnan(layers.global_max_pool(x)).all()


def normalised(x, axes, scale, bias):
    mean = x.mean(axes, keepdims=True, dtype=np.float64)
    variance = ((x - mean) ** 2).mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + bias


@pytest.fixture(scope="module")
def features():
    return 3 * random_array(4, 5, 6, 3, seed=5) + np.array([0, 2, -1], np.float32)


@pytest.fixture(scope="module")
def affine():
    scale = np.array([1.0, 0.5, 2.0], np.float32)
    bias = np.array([0.0, -1.0, 3.0], np.float32)
    return {"params": {"scale": scale, "bias": bias}}


def test_batch_norm_without_averages_trains_by_the_batch(features, affine):
    actual = layers.BatchNorm(None).apply(affine, features, train=True)
    expected = normalised(features, (0, 1, 2), **affine["params"])
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_batch_norm_without_averages_evaluates_each_image_by_itself(features, affine):
    norm = layers.BatchNorm(None)
    actual = norm.apply(affine, features, train=False)
    expected = normalised(features, (1, 2), **affine["params"])
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    for i in range(4):
        alone = norm.apply(affine, features[i : i + 1], train=False)
        np.testing.assert_allclose(actual[i], alone[0], atol=1e-5)
        # The authors' program: a batch of one, normalised as in training.
        authors = norm.apply(affine, features[i : i + 1], train=True)
        np.testing.assert_allclose(actual[i], authors[0], atol=1e-5)


@pytest.mark.parametrize("ratio", [1, 100, 1000])
def test_batch_norm_without_averages_is_as_exact_as_pytorchs(ratio):
    """Output and gradient, at means of so many deviations, against float64."""
    torch = pytest.importorskip(
        "torch", reason="PyTorch, whose rounding errors ours are held to, is missing"
    )
    x = random_array(4, 8, 8, 64) + np.float32(ratio)
    cotangent = random_array(*x.shape, seed=1)
    params = {"scale": random_array(64, seed=2), "bias": random_array(64, seed=3)}

    def by_torch(dtype):
        arrays = (np.moveaxis(x, -1, 1).copy(), params["scale"], params["bias"])
        inputs = [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]
        y = torch.nn.functional.batch_norm(
            inputs[0], None, None, *inputs[1:], training=True, eps=layers.EPSILON
        )
        y.backward(torch.tensor(np.moveaxis(cotangent, -1, 1).copy(), dtype=dtype))
        maps = [one.movedim(1, -1).numpy() for one in (y.detach(), inputs[0].grad)]
        return [*maps, *(one.grad.numpy() for one in inputs[1:])]

    @jax.jit
    def by_ours(x, scale, bias, cotangent):
        def apply(x, scale, bias):
            variables = {"params": {"scale": scale, "bias": bias}}
            return layers.BatchNorm(None).apply(variables, x, train=True)

        y, pull_back = jax.vjp(apply, x, scale, bias)
        return y, *pull_back(cotangent)

    ours = by_ours(x, **params, cotangent=cotangent)
    theirs, exact = by_torch(torch.float32), by_torch(torch.float64)
    np.testing.assert_allclose(
        exact[0], normalised(x.astype(np.float64), (0, 1, 2), **params), atol=1e-6
    )
    for our, their, right in zip(ours, theirs, exact, strict=True):
        error, usual = (np.std(np.float64(x) - right) for x in (our, their))
        # Rounding errors of sums in different orders.
        assert error <= 2 * usual


def test_batch_norm_without_averages_survives_constant_features(affine):
    def loss(x):
        return layers.BatchNorm(None).apply(affine, x, train=True).sum()

    x = jnp.full((2, 4, 4, 3), 7.3)
    assert np.isfinite(loss(x))
    assert np.isfinite(jax.grad(loss)(x)).all()


def test_batch_norm_without_averages_keeps_no_statistics(features):
    variables = layers.BatchNorm(None).init(jax.random.key(0), features, train=True)
    assert set(variables) == {"params"}


def test_batch_norm_without_averages_shares_statistics_over_a_mapped_axis(
    features, affine
):
    norm = layers.BatchNorm(None, axis_name="devices")
    halves = features.reshape(2, 2, *features.shape[1:])
    actual = jax.vmap(lambda x: norm.apply(affine, x, train=True), axis_name="devices")(
        halves
    )
    expected = normalised(features, (0, 1, 2), **affine["params"])
    np.testing.assert_allclose(actual.reshape(features.shape), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 3, 5, 6), (2, 4, 4, 16)], ids=str)
@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_batch_norm_with_averages_is_flaxs(shape, bias):
    """Of x + shift: values, gradients and averages in training, and evaluation."""
    channels = shape[-1]
    x = 2 * random_array(*shape) + random_array(channels, seed=1)
    shift = bias * random_array(channels, seed=2)
    variables = {
        "params": {
            "scale": random_array(channels, seed=3),
            "bias": random_array(channels, seed=4),
        },
        "batch_stats": {
            "mean": random_array(channels, seed=5),
            "var": random_array(channels, seed=6) ** 2,
        },
    }
    cotangent = random_array(*shape, seed=7)

    def run(apply):
        def train(params, x, shift):
            variables_ = {**variables, "params": params}
            return apply(variables_, x, shift, True, mutable=["batch_stats"])

        y, pull_back, updated = jax.vjp(
            train, variables["params"], x, shift, has_aux=True
        )
        return y, pull_back(cotangent), updated, apply(variables, x, shift, False)

    ours = layers.BatchNorm(0.9)
    theirs = nn.BatchNorm(momentum=0.9, epsilon=layers.EPSILON)

    def by_flax(variables, x, shift, train, **options):
        return theirs.apply(
            variables, x + shift, use_running_average=not train, **options
        )

    def by_ours(variables, x, shift, train, **options):
        return ours.apply(variables, x, shift, train=train, **options)

    found, expected = jax.jit(run, static_argnums=0)(by_ours), run(by_flax)
    # A shift of what has its mean taken away has no gradient but rounding.
    np.testing.assert_array_equal(found[1][2], 0)
    np.testing.assert_allclose(expected[1][2], 0, atol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


def test_batch_norm_begins_as_flaxs():
    x = random_array(2, 4, 4, 3)
    ours = layers.BatchNorm(0.9).init(jax.random.key(0), x, train=True)
    theirs = nn.BatchNorm(False).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("norm", ["batch", "batch_no_average", "group", "none"])
def test_a_layer_in_bfloat16_is_near_float32(norm):
    x = random_array(2, 16, 16, 3).astype(jnp.bfloat16)

    def run(dtype):
        layer = layers.ConvNorm(8, norm=norm, relu=False, dtype=dtype)
        variables = layer.init(jax.random.key(0), x, train=True)

        def train(x):
            y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
            return layers.upsample(y), updated

        y, pull_back, updated = jax.vjp(train, x.astype(dtype), has_aux=True)
        assert y.dtype == dtype
        return (
            y,
            updated,
            pull_back(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(dtype)),
        )

    def close(one, other):
        assert np.linalg.norm(one - other) < 0.03 * np.linalg.norm(other)

    with_few_bits = run(jnp.bfloat16)
    assert with_few_bits[2][0].dtype == jnp.bfloat16
    jax.tree.map(
        close, *(jax.tree.map(np.float32, t) for t in (with_few_bits, run(jnp.float32)))
    )


def dropped(x, key, rate=0.8, train=True):
    return layers.Dropout(rate).apply({}, x, train=train, rngs={"dropout": key})


def test_dropout_is_off_in_evaluation_and_at_rate_zero():
    x = random_array(4, 10)
    np.testing.assert_array_equal(layers.Dropout(0.8).apply({}, x, train=False), x)
    np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, train=True), x)


@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_dropout_scales_what_it_keeps_so_that_the_expectation_stays(rate):
    x = np.ones((50, 400), np.float32)
    y = np.asarray(dropped(x, jax.random.key(1), rate))
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=1e-6)
    # 20,000 elements: five standard deviations of the mean are 0.03 and 0.07.
    tolerance = 5 * np.sqrt(rate / (1 - rate) / y.size)
    np.testing.assert_allclose(y.mean(), 1, atol=tolerance)


@given(st.integers(0, 2**31 - 1))
def test_dropout_of_an_example_does_not_depend_on_how_many_follow(seed):
    key, x = jax.random.key(seed), random_array(8, 32)
    whole = np.asarray(dropped(x, key))
    np.testing.assert_array_equal(whole[:4], dropped(x[:4], key))
    # Examples do not share a stream.
    assert len({tuple(row) for row in whole != 0}) > 1


def test_dropout_of_an_example_does_not_depend_on_its_device():
    key, x = jax.random.key(3), random_array(8, 32)
    split = jax.vmap(
        lambda x: layers.Dropout(0.8, "devices").apply(
            {}, x, train=True, rngs={"dropout": key}
        ),
        axis_name="devices",
    )(x.reshape(4, 2, 32))
    np.testing.assert_allclose(split.reshape(8, 32), dropped(x, key), rtol=1e-6)


def test_conv_norm_relu_is_what_its_name_says():
    x = random_array(2, 6, 6, 3)
    layer = layers.ConvNorm(4, norm="batch_no_average")
    kernel, bias = random_array(3, 3, 3, 4, seed=7), random_array(4, seed=8)
    scale, shift = random_array(4, seed=9), random_array(4, seed=10)
    params = {
        "conv": {"kernel": kernel, "bias": bias},
        "norm": {"scale": scale, "bias": shift},
    }
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )
    y = np.asarray(y + bias)
    expected = np.maximum(normalised(y, (0, 1, 2), scale, shift), 0)
    actual = layer.apply({"params": params}, x, train=True)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_running_variance_is_the_biased_one_torch_keeps_the_unbiased():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(2, 3, (2, 4, 4, 3)).astype(np.float32)
    layer = layers.ConvNorm(3, norm="batch", norm_momentum=0.9)
    variables = jax.tree.map(np.array, layer.init(jax.random.key(0), x, train=False))
    kernel = variables["params"]["conv"]["kernel"]
    kernel[...] = 0
    kernel[1, 1] = np.eye(3)
    variables["params"]["conv"]["bias"][...] = 0
    _, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    ours = updated["batch_stats"]["norm"]
    theirs = torch.nn.BatchNorm2d(3, momentum=0.1)
    theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(ours["mean"], theirs.running_mean, rtol=1e-5)
    # Both keep 0.9 of the 1 that they begin with.
    count = 2 * 4 * 4
    biased = (theirs.running_var.numpy() - 0.9) * (count - 1) / count + 0.9
    np.testing.assert_allclose(ours["var"], biased, rtol=1e-5)
    assert (np.abs(ours["var"] - theirs.running_var.numpy()) > 0.01).all()
