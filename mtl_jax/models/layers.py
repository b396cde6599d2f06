"""Layers shared by the networks: convolution, normalisation, upsampling, dropout.

Images are NHWC. Under `jax.pmap` the modules take the name of the mapped axis. Batch
statistics and dropout then depend on the whole batch, and not on its division.
"""

import functools
import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax.models import convolution

Norm = Literal["batch", "batch_no_average", "group", "none"]
NORMS: tuple[str, ...] = get_args(Norm)
Init = Literal["kaiming_uniform", "he_uniform"]
INITS: tuple[str, ...] = get_args(Init)

EPSILON = 1e-5


def initializers(
    init: Init, fan_in: int
) -> tuple[nn.initializers.Initializer, nn.initializers.Initializer]:
    """Returns initialisers of a layer's kernel and bias.

    `kaiming_uniform` is the default of PyTorch's layers (`a = sqrt(5)`), and the
    paper's: kernel and bias are uniform in +-1 / sqrt(fan_in). `he_uniform` is that of
    He et al. 2015: the kernel is uniform in +-sqrt(6 / fan_in), the bias is 0.

    Args:
      init: one of `INITS`.
      fan_in: number of inputs of one output: kernel height x width x input channels.

    Returns:
      Two functions `(key, shape, dtype) -> array`.

    Raises:
      ValueError: for an unknown name.
    """
    if init == "kaiming_uniform":
        bound = 1 / math.sqrt(fan_in)
        return _uniform(bound), _uniform(bound)
    if init == "he_uniform":
        return _uniform(math.sqrt(6 / fan_in)), nn.initializers.zeros
    raise ValueError(f"init must be one of {INITS}, got {init!r}")


def _uniform(bound: float) -> nn.initializers.Initializer:
    def initialize(key, shape, dtype=jnp.float32):
        # Drawn as one row: XLA's CPU backend takes seconds to compile a
        # four-dimensional draw.
        row = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return row.reshape(shape)

    return initialize


class Conv(nn.Module):
    """Convolution that leaves the addition of its bias to the layer after it.

    Attributes:
      features: output channels.
      kernel_size: odd side of the kernel; zero padding keeps the size.
      stride: stride of the convolution.
      use_bias: whether there is a bias.
      init_scheme: initialisation of kernel and bias, see `initializers`.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    kernel_size: int
    stride: int
    use_bias: bool
    init_scheme: Init
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | float]:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features] and the bias."""
        size, strides = self.kernel_size, (self.stride, self.stride)
        shape = (size, size, x.shape[-1], self.features)
        kernel_init, bias_init = initializers(self.init_scheme, math.prod(shape[:3]))
        kernel = self.param("kernel", kernel_init, shape).astype(self.dtype)
        bias = 0.0
        if self.use_bias:
            bias = self.param("bias", bias_init, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        if size == 3 and self.stride == 1:
            return convolution.conv_3x3(x, kernel), bias
        # "SAME" would pad a strided convolution on one side only.
        padding = ((size // 2, size // 2),) * 2
        y = lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=convolution.LAYOUT
        )
        return y, bias


class BatchNorm(nn.Module):
    """Batch normalisation, in training by the statistics of the batch.

    Attributes:
      momentum: share of the running averages kept at each update. They normalise in
        evaluation. None keeps no averages: evaluation normalises every image by its own
        statistics, for batches of any size. The original authors' program does the same
        by evaluating batches of one.
      dtype: dtype of the result; statistics are float32.
      axis_name: name of the `jax.pmap` axis over which batch statistics are shared.
    """

    momentum: float | None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, shift: jax.Array | float = 0.0, *, train: bool
    ) -> jax.Array:
        """Normalises x + shift, [B, H, W, C] and [C].

        Where x has its own mean taken away, the shift matters to the running mean
        alone, and its gradient is 0. Adding it, and summing its gradient, would take
        time.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        axis_name = None if self.is_initializing() else self.axis_name
        if self.momentum is None:
            # If the mean is many deviations, E[x^2] - E[x]^2 is a difference of nearly
            # equal numbers. So a first pass subtracts nearly all of the mean. The
            # output does not depend on the number that it subtracts, which therefore
            # needs no gradient.
            def normalise(x, axis_name=None):
                x = x.astype(jnp.float32)
                x -= lax.stop_gradient(_means([x], axis_name)[0])
                return _normalise(x, scale, bias, axis_name)[0]

            if train:
                y = normalise(x, axis_name)
            else:
                y = jax.vmap(lambda image: normalise(image[None])[0])(x)
            return y.astype(self.dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        variance = self.variable("batch_stats", "var", jnp.ones, channels)
        if not train:
            factor = lax.rsqrt(variance.value + EPSILON) * scale
            y = (x.astype(jnp.float32) + shift - mean.value) * factor + bias
            return y.astype(self.dtype)
        # Its E[x^2] - E[x]^2 is off by 2e-3 if the mean is 100 deviations. In a small
        # network it was at most 6, before and in training.
        y, *own = _normalise(x, scale, bias, axis_name)
        if not self.is_initializing():
            own[0] += shift
            for average, value in zip((mean, variance), own, strict=True):
                kept = self.momentum * average.value
                average.value = kept + (1 - self.momentum) * value
        return y.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised [B, H, W, C], mean [C] and variance [C], in float32.

    Gradients of the last two are taken as 0. The gradient reads its two arrays twice,
    once for the means and once for the result.
    """
    return _normalise_forward(x, scale, bias, axis_name)[0]


def _normalise_forward(x, scale, bias, axis_name):
    wide = x.astype(jnp.float32)
    mean, square = _means([wide, jnp.square(wide)], axis_name)
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    inverse = lax.rsqrt(variance + EPSILON)
    y = (wide - mean) * (inverse * scale) + bias
    return (y, mean, variance), (x, scale, mean, inverse)


def _normalise_backward(axis_name, residuals, gradients):
    x, scale, mean, inverse = residuals
    gradient = gradients[0]
    wide = x.astype(jnp.float32)
    own = _means([gradient, gradient * wide])
    size = x.size // x.shape[-1]
    bias_gradient = size * own[0]
    scale_gradient = size * inverse * (own[1] - mean * own[0])

    of_gradient, of_product = _shared(own, axis_name)
    factor = inverse * scale
    slope = factor * jnp.square(inverse) * (of_product - mean * of_gradient)
    # A last product XLA would fuse into every reader, and compute there anew.
    x_gradient = factor * gradient - (slope * (wide - mean) + factor * of_gradient)
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _means(arrays: list[jax.Array], axis_name: str | None = None) -> list[jax.Array]:
    """Means [C] over images and pixels, and the devices of `axis_name` if given."""
    return _shared([_sum(x) / (x.size // x.shape[-1]) for x in arrays], axis_name)


def _shared(means: list[jax.Array], axis_name: str | None) -> list[jax.Array]:
    return means if axis_name is None else lax.pmean(means, axis_name)


def _sum(x: jax.Array) -> jax.Array:
    """Sum [C] over images and pixels."""
    b, h, w, channels = x.shape
    # XLA's CPU backend is up to three times faster if several columns fill its vectors.
    columns = math.gcd(w, 64 // channels) if channels < 16 else 1
    sums = x.reshape(b, h, w // columns, columns * channels).sum((0, 1, 2))
    return sums.reshape(columns, channels).sum(0)


class ConvNorm(nn.Module):
    """Convolution, normalisation and ReLU.

    Attributes:
      features: output channels.
      kernel_size: odd side of the kernel; zero padding keeps the size.
      stride: stride of the convolution.
      use_bias: whether the convolution has a bias.
      relu: whether ReLU follows.
      norm: `batch` (running averages), `batch_no_average`, `group` or `none`.
      norm_momentum: share of the running averages kept at each update (`batch`).
      init_scheme: initialisation of kernel and bias, see `initializers`.
      dtype: dtype of the computation; parameters and statistics are float32.
      axis_name: name of the `jax.pmap` axis over which batch statistics are shared.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    relu: bool = True
    norm: Norm = "batch"
    norm_momentum: float = 0.99
    init_scheme: Init = "kaiming_uniform"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features]."""
        x, bias = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.use_bias,
            self.init_scheme,
            self.dtype,
            name="conv",
        )(x)
        if self.norm in ("batch", "batch_no_average"):
            momentum = self.norm_momentum if self.norm == "batch" else None
            norm = BatchNorm(momentum, self.dtype, self.axis_name, name="norm")
            x = norm(x, bias, train=train)
        else:
            x += bias
        if self.norm == "group":
            groups = math.gcd(32, self.features)
            x = nn.GroupNorm(groups, epsilon=EPSILON, dtype=self.dtype, name="norm")(x)
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")
        return nn.relu(x) if self.relu else x


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pooling of [B, H, W, C], H and W even.

    The first of equal elements has the gradient, as in PyTorch.
    """

    def at(row, column):
        return lax.slice(x, (0, row, column, 0), x.shape, (1, 2, 2, 1))

    return _larger(_larger(at(0, 0), at(0, 1)), _larger(at(1, 0), at(1, 1)))


def _larger(x: jax.Array, y: jax.Array) -> jax.Array:
    # The gradient follows the choice. That of `jnp.maximum` compares inputs and output.
    # XLA may compute these twice, with other last bits. None is the largest then, and
    # the gradient is lost.
    return jnp.where((x >= y) | jnp.isnan(x), x, y)


def global_max_pool(x: jax.Array) -> jax.Array:
    """Maximum [B, C] over the pixels of [B, H, W, C].

    The first of equal elements has the gradient, as in PyTorch.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h * w, c)
    # As in `_larger`, the gradient of `max` would compare.
    largest = jnp.arange(h * w)[:, None] == jnp.argmax(x, 1)[:, None]
    return jnp.where(largest, x, 0).sum(1)


def upsample(x: jax.Array) -> jax.Array:
    """Doubles H and W of [B, H, W, C] by bilinear interpolation, corners aligned."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _double(_double(wide, 2), 1).astype(x.dtype)


def _double(x: jax.Array, axis: int) -> jax.Array:
    """Doubles an axis of n by linear interpolation with aligned corners.

    Outputs 2 j and 2 j + 1 lie at j - j / (2 n - 1) and j + (n - 1 - j) / (2 n - 1).
    """
    n = x.shape[axis]
    zeros = jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis))
    # Beyond the corners, whose weights are 0.
    before = jnp.concatenate([zeros, lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, n, axis=axis), zeros], axis)
    index = jnp.arange(n, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))
    even = x + index / (2 * n - 1) * (before - x)
    odd = x + (n - 1 - index) / (2 * n - 1) * (after - x)
    shape = *x.shape[:axis], 2 * n, *x.shape[axis + 1 :]
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def example_index(batch: int, axis_name: str | None) -> jax.Array:
    """Returns [batch] indices of the examples within the batch of all devices."""
    start = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    return start + jnp.arange(batch)


class Dropout(nn.Module):
    """Dropout with one random stream per example of the global batch.

    Every example's mask is the same for any number of devices.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Drops elements of [B, ...] features with probability `rate`."""
        if not train or self.rate == 0.0:
            return x
        key = self.make_rng("dropout")
        axis_name = None if self.is_initializing() else self.axis_name
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(
            example_index(x.shape[0], axis_name)
        )
        keep = 1.0 - self.rate
        # One row compiles faster, as for kernels.
        size = math.prod(x.shape[1:])
        kept = jax.vmap(lambda k: jax.random.bernoulli(k, keep, (size,)))(keys)
        kept = kept.reshape(x.shape)
        return jnp.where(kept, x / keep, jnp.zeros_like(x))
