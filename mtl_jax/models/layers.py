"""Layers shared by the networks: convolution, normalisation, upsampling, dropout.

Images are NHWC. Under `jax.pmap` the modules take the name of the mapped axis. Batch
statistics and dropout then depend on the whole batch, and not on its division.
"""

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


def _plain(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Convolution for `nn.Conv` with stride and padding 1."""
    return convolution.conv_3x3(x, kernel)


class BatchNormNoAverage(nn.Module):
    """Batch normalisation that keeps no running averages.

    In training it normalises by the batch. In evaluation it normalises every image by
    its own statistics, for batches of any size. The original authors' program does the
    same by evaluating batches of one. Rounding errors are no larger than PyTorch's,
    even if the features' mean is many deviations.
    """

    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises [B, H, W, C] features."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        axes = (0, 1, 2) if train else (1, 2)
        is_shared = train and self.axis_name is not None and not self.is_initializing()

        def means(*values):
            own = [jnp.mean(v, axes, keepdims=True) for v in values]
            return lax.pmean(own, self.axis_name) if is_shared else own

        # If the mean is many deviations, E[x^2] - E[x]^2 is a difference of nearly
        # equal numbers. So a first pass subtracts nearly all of the mean, and a second
        # one what rounding has left. The output does not depend on the number that the
        # first pass subtracts, which therefore needs no gradient.
        x -= lax.stop_gradient(means(x)[0])
        mean, square = means(x, jnp.square(x))
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        y = (x - mean) * (lax.rsqrt(variance + EPSILON) * scale) + bias
        return y.astype(self.dtype)


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
        is_plain = self.kernel_size == 3 and self.stride == 1
        kernel_init, bias_init = initializers(
            self.init_scheme, self.kernel_size**2 * x.shape[-1]
        )
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            self.stride,
            # "SAME" would pad a strided convolution on one side only.
            padding=self.kernel_size // 2,
            use_bias=self.use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=self.dtype,
            conv_general_dilated=_plain if is_plain else None,
            name="conv",
        )(x)
        if self.norm == "batch":
            # Its E[x^2] - E[x]^2 is off by 2e-3 if the mean is 100 deviations. In a
            # small network it was at most 6, before and in training, and
            # use_fast_variance=False made its step on a CPU 6 % slower.
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=self.norm_momentum,
                epsilon=EPSILON,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name="norm",
            )(x)
        elif self.norm == "batch_no_average":
            x = BatchNormNoAverage(self.dtype, self.axis_name, name="norm")(
                x, train=train
            )
        elif self.norm == "group":
            groups = math.gcd(32, self.features)
            x = nn.GroupNorm(groups, epsilon=EPSILON, dtype=self.dtype, name="norm")(x)
        elif self.norm != "none":
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
    """Doubles H and W of [B, H, W, C] by bilinear interpolation, corners aligned.

    It is two products with small matrices, whose gradients are products as well. The
    gradients of gathered rows would be scatters.
    """
    x = jnp.einsum("oh,bhwc->bowc", _interpolation(x.shape[1], x.dtype), x)
    return jnp.einsum("ow,bhwc->bhoc", _interpolation(x.shape[2], x.dtype), x)


def _interpolation(size: int, dtype: Any) -> jax.Array:
    """[2 * size, size] matrix of linear interpolation with aligned corners."""
    position = jnp.arange(2 * size) * ((size - 1) / (2 * size - 1))
    distance = jnp.abs(position[:, None] - jnp.arange(size)[None, :])
    return jnp.maximum(1.0 - distance, 0.0).astype(dtype)


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
