"""3x3 convolution that is trained by programs of its own on a CPU."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial import polynomial

from mtl_jax import machine

LAYOUT = ("NHWC", "HWIO", "NHWC")
# XLA's CPU backend hands convolutions to Eigen if no side has more channels, and
# otherwise to YNNPACK.
EIGEN_CHANNELS = 16
# Winograd's sums in one direction of a tile: places of two pixels, and their weights.
OF_IMAGE = (
    np.array([[0, 2], [1, 2], [2, 1], [1, 3]]),
    np.array([[1, -1], [1, 1], [1, -1], [1, -1]], np.float32),
)
OF_GRADIENT = (
    np.array([[0, 1], [0, 1], [0, 1], [0, 1]]),
    np.array([[1, 0], [1, 1], [1, -1], [0, 1]], np.float32),
)
# The kernel's three rows from the four products of a direction.
OF_PRODUCTS = np.array(
    [[1, 0.5, 0.5, 0], [0, 0.5, -0.5, 0], [0, 0.5, 0.5, -1]], np.float32
)
# Where Winograd's F(4, 3) of rows has its values, and at infinity. The usual 0, +-1 and
# +-2 have rounding errors 1.4 times larger.
POINTS = np.array([0, 3 / 4, -3 / 4, 3 / 2, -3 / 2])


def plain_conv_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `conv_3x3`, by XLA's own programs everywhere."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


@jax.custom_vjp
def conv_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution whose gradients are fast inside loops on CPUs, too.

    Inside loops and conditionals, XLA's CPU backend has fast kernels for matrix
    products and for convolutions in canonical layout only. The weight gradient that JAX
    derives is neither, and about thirty times slower there (jax issue 12868). In
    training, rounding errors of deep layers are two to three times larger there.

    Args:
      x: [B, H, W, Cin].
      kernel: [3, 3, Cin, Cout].

    Returns:
      [B, H, W, Cout], with zero padding and stride 1.
    """
    return plain_conv_3x3(x, kernel)


def _conv_3x3_forward(x, kernel):
    # Training alone: predictions and exported files keep the plain convolution.
    y = lax.platform_dependent(x, kernel, cpu=_convolve_on_cpu, default=plain_conv_3x3)
    return y, (x, kernel)


def _conv_3x3_backward(residuals, gradient):
    # By the platform that is compiled for: it need not be this machine's.
    return lax.platform_dependent(
        *residuals, gradient, cpu=_gradients_on_cpu, default=_gradients
    )


conv_3x3.defvjp(_conv_3x3_forward, _conv_3x3_backward)


def _convolve_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    b, h, w, channels = x.shape
    # The sums of pixels and of kernels need many products each to be worth their time.
    is_deep = min(channels, kernel.shape[-1]) >= 64 and b * h * w >= 2048
    if is_deep and h % 4 == 0:

        def convolve_row(row, of_kernel):
            return _convolve_on_all_cores(row, of_kernel[None])

        return _winograd_of_rows(x, kernel, convolve_row)
    if max(channels, kernel.shape[-1]) <= EIGEN_CHANNELS:
        return _convolve_columns(x, kernel)
    return _convolve_on_all_cores(x, kernel)


def _convolve_on_all_cores(
    x: jax.Array, kernel: jax.Array, columns: int = 1
) -> jax.Array:
    """Convolution with zero padding, of every row and every `columns`-th column.

    YNNPACK is faster than Eigen on one core. But it divides only a single row among
    cores, and most rows have too few pixels and channels for that.
    """
    height = kernel.shape[0]
    is_wide = max(x.shape[-1], kernel.shape[-1]) > EIGEN_CHANNELS
    # A row of zeros brings Eigen: YNNPACK takes no result larger than the image.
    added_rows = 1 if is_wide and machine.num_cores() > 1 else 0
    result = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, columns),
        padding=((height // 2, height // 2 + added_rows), (1, 1)),
        dimension_numbers=LAYOUT,
    )
    return result[:, : x.shape[1]]


def _convolve_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution [B, H, W, Cout] that computes some columns at once, as channels.

    The zeros in a kernel for N columns make N + 2 products of three. But XLA's programs
    for more channels are more than as many times faster.
    """
    b, h, w, channels = x.shape
    outputs = kernel.shape[-1]
    # YNNPACK is faster with 32 channels than Eigen, but not in parallel.
    columns = _num_columns(w, outputs, takes_ynnpack=machine.num_cores() == 1)
    # The vector instructions take four channels of an image no slower than three.
    added_channels = -channels % 4
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, added_channels)))
    shifted = [
        jnp.pad(kernel, ((0, 0), (i, columns - 1 - i), (0, added_channels), (0, 0)))
        for i in range(columns)
    ]
    result = _convolve_on_all_cores(x, jnp.concatenate(shifted, 3), columns)
    return result.reshape(b, h, w, outputs)


def _num_columns(width: int, outputs: int, takes_ynnpack: bool) -> int:
    """The most columns to compute at once, as channels of one.

    With `takes_ynnpack` they have more channels than XLA leaves to Eigen.
    """
    most_channels = 32 if takes_ynnpack else EIGEN_CHANNELS
    limit = max(most_channels // outputs, 1)
    return max(n for n in range(1, limit + 1) if width % n == 0)


def _winograd_of_rows(
    x: jax.Array,
    kernel: jax.Array,
    product: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Winograd's F(4, 3) of rows, with zeros above and below, H a multiple of 4.

    Six sums of six rows meet six sums of the kernel's rows in `product`, which maps
    [B, H / 4, W, C] and one row of the kernel to [B, H / 4, W, *anything]. The columns
    are its own affair. Four rows of the result, [B, H, W, *anything], are sums of
    these: 18 products of a column instead of 36. Rounding errors are two to three times
    those of `plain_conv_3x3`, and relative to the largest of the six rows.
    """
    b, h, w, channels = x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    padded = jnp.pad(x.astype(dtype), ((0, 0), (1, 3), (0, 0), (0, 0)))
    fours = padded.reshape(b, h // 4 + 1, 4, w, channels)
    rows = [fours[:, :-1, i] for i in range(4)]
    rows += [fours[:, 1:, i] for i in range(2)]
    of_rows, of_kernel, of_results = _cook_toom(POINTS)
    products = [
        product(row, kernel_row)
        for row, kernel_row in zip(
            _weighted_sums(of_rows, rows),
            _weighted_sums(of_kernel, list(kernel.astype(dtype))),
            strict=True,
        )
    ]
    result = jnp.stack(_weighted_sums(of_results, products), 2)
    return result.reshape(b, h, w, *result.shape[4:]).astype(x.dtype)


def _cook_toom(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices B^T [6, 6], G [6, 3] and A^T [4, 6] of F(4, 3).

    Section 4.1 of Lavin and Gray 2016 defines them. They multiply polynomials by their
    values at five `points` and at infinity (Cook and Toom).
    """
    others = [np.delete(points, i) for i in range(len(points))]
    of_image = np.zeros((6, 6))
    of_image[:5, :5] = [polynomial.polyfromroots(roots) for roots in others]
    of_image[5] = polynomial.polyfromroots(points)
    differences = [np.prod(p - roots) for p, roots in zip(points, others, strict=True)]
    values = np.vander(points, 4, increasing=True)
    of_kernel = np.vstack([values[:, :3] / np.reshape(differences, (5, 1)), [0, 0, 1]])
    return of_image, of_kernel, np.vstack([values, [0, 0, 0, 1]]).T


def _weighted_sums(weights: np.ndarray, arrays: list[jax.Array]) -> list[jax.Array]:
    """One sum of `arrays` for each row of `weights`."""

    def weighted(row):
        pairs = [(weight, a) for weight, a in zip(row, arrays, strict=True) if weight]
        return functools.reduce(jnp.add, [float(weight) * a for weight, a in pairs])

    return [weighted(row) for row in weights]


def _gradients(x, kernel, gradient):
    return jax.vjp(plain_conv_3x3, x, kernel)[1](gradient)


def _gradients_on_cpu(x, kernel, gradient):
    x_gradient = _input_gradient_on_cpu(kernel, gradient)
    b, h, w, _ = x.shape
    channels = min(x.shape[-1], gradient.shape[-1])
    # In the canonical convolution an image is the kernel, and large images are slow.
    # Winograd's products need channels and pixels.
    is_wide = channels >= 32 and h * w >= 32 * 32
    is_deep = channels >= 64 and b * h * w >= 512
    takes_winograd = b > 0 and (is_wide or is_deep) and h % 2 == w % 2 == 0
    of_kernel = _winograd if takes_winograd else _canonical_convolution
    return x_gradient, of_kernel(x, gradient)


def _input_gradient_on_cpu(kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """[B, H, W, Cin]: convolution of `gradient` with the flipped, transposed kernel.

    A convolution needs a transposed copy of the kernel, which takes long where there
    are few pixels for each of the kernel's numbers. Products do without.
    """
    b, h, w, outputs = gradient.shape
    is_deep = min(kernel.shape[2:]) >= 64
    takes_winograd = is_deep and h % 4 == 0 and 256 <= b * h * w <= 2048
    if not takes_winograd and kernel.size <= gradient.size:
        return _convolve_on_cpu(gradient, jnp.flip(kernel.swapaxes(2, 3), (0, 1)))

    def product(rows, of_kernel):
        # XLA is several times slower with products of more than two axes.
        pixels, inputs = rows.reshape(-1, outputs), of_kernel.reshape(-1, outputs)
        return (pixels @ inputs.T).reshape(*rows.shape[:3], *of_kernel.shape[:-1])

    dtype = jnp.promote_types(gradient.dtype, jnp.float32)
    wide, kernel = gradient.astype(dtype), kernel.astype(dtype)
    if takes_winograd:
        columns = _winograd_of_rows(wide, kernel[::-1], product)
    else:
        columns = _sum_of_moved(product(wide, kernel), 1)
    return _sum_of_moved(columns, 2).astype(gradient.dtype)


def _sum_of_moved(products: jax.Array, axis: int) -> jax.Array:
    """Sum of products[:, :, :, i] for i < 3, moved by i - 1 pixels along the axis."""
    before, at, after = (products[:, :, :, i] for i in range(3))
    zeros = jnp.zeros_like(lax.slice_in_dim(at, 0, 1, axis=axis))
    before = [lax.slice_in_dim(before, 1, None, axis=axis), zeros]
    after = [zeros, lax.slice_in_dim(after, 0, -1, axis=axis)]
    return at + jnp.concatenate(before, axis) + jnp.concatenate(after, axis)


def _canonical_convolution(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Weight gradient [3, 3, Cin, Cout] as a convolution in canonical layout."""
    if gradient.shape[-1] < min(x.shape[-1], 64):
        # Few outputs do not fill vector instructions, so the images exchange roles. Of
        # more outputs, the result that is then transposed is large.
        exchanged = _canonical_convolution(gradient, x)
        return jnp.flip(exchanged, (0, 1)).swapaxes(2, 3)
    b, h, w, inputs = x.shape
    outputs = gradient.shape[-1]
    # The images are channels here. With fewer than eight, Eigen is slow even if it has
    # all cores. With more than 16, XLA takes YNNPACK, which needs no more outputs.
    takes_ynnpack = machine.num_cores() == 1 or b < 8
    columns = _num_columns(w, outputs, takes_ynnpack) if b <= EIGEN_CHANNELS else 1
    # N columns of the gradient meet the N + 2 of the image that any of them meets.
    kernels = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        gradient.reshape(b, h, w // columns, columns * outputs).transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        rhs_dilation=(1, columns),
        dimension_numbers=LAYOUT,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    ).reshape(inputs, 3, columns + 2, columns, outputs)
    parts = [kernels[:, :, i : i + 3, i] for i in range(columns)]
    kernel_gradient = functools.reduce(jnp.add, parts)
    return kernel_gradient.transpose(1, 2, 0, 3).astype(gradient.dtype)


def _winograd(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Weight gradient [3, 3, Cin, Cout] by Winograd's F(3 x 3, 2 x 2), H and W even.

    A tile of 2 x 2 pixels of `gradient` meets 4 x 4 of `x` in 16 products instead of 36
    (Lavin and Gray 2016, section 4.1, with exchanged sizes). Each product is of sums of
    pixels. A block of tiles stays in the cache. Rounding errors are relative to the
    largest of the nine numbers of two channels.
    """
    b, h, w, inputs = x.shape
    outputs = gradient.shape[-1]
    # XLA takes another program for smaller products, slow if there are few channels.
    num_tiles = 128 if min(inputs, outputs) >= 64 else 256
    limit = max(num_tiles // (w // 2), 1)
    rows = max(n for n in range(1, h // 2 + 1) if h // 2 % n == 0 and n <= limit)
    # Blocks of whole images have equally many; images of zeros add nothing.
    limit = max(num_tiles // (rows * w // 2), 1) if rows == h // 2 else 1
    images = math.ceil(b / math.ceil(b / limit))
    added = -b % images
    padded = jnp.pad(x, ((0, added), (1, 1), (1, 1), (0, 0)))
    gradient = jnp.pad(gradient, ((0, added), (0, 0), (0, 0), (0, 0)))
    seen, pulled = (
        y.reshape(-1, y.shape[1] // 2, 2, y.shape[2] // 2, 2, y.shape[3])
        for y in (padded, gradient)
    )

    def product(i, k):
        first = i * rows // (h // 2) * images, i * rows % (h // 2)
        of_x, of_gradient = (
            _sum_of_pixels(y, first, (images, rows, w // 2), pixels, k)
            for y, pixels in ((seen, OF_IMAGE), (pulled, OF_GRADIENT))
        )
        return of_x.T @ of_gradient

    def add_block(i, total):
        return lax.fori_loop(0, 16, lambda k, t: t.at[k].add(product(i, k)), total)

    num_blocks = (b + added) * h // (2 * images * rows)
    if num_blocks == 1:
        # Zeros to add to would be written and read, and are many for deep layers.
        total = lax.map(functools.partial(product, 0), jnp.arange(16))
    else:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        total = jnp.zeros((16, inputs, outputs), dtype)
        total = lax.fori_loop(0, num_blocks, add_block, total)
    kernel_gradient = np.kron(OF_PRODUCTS, OF_PRODUCTS) @ total.reshape(16, -1)
    return kernel_gradient.reshape(3, 3, inputs, outputs).astype(gradient.dtype)


def _sum_of_pixels(tiles, first, size, pixels, k):
    """Sums [T, C] of number `k` for a block of T = images x rows x columns tiles.

    Args:
      tiles: [B, H / 2, 2, W / 2, 2, C].
      first: image and row of tiles with which the block begins.
      size: images, rows and columns of tiles.
      pixels: `OF_IMAGE` or `OF_GRADIENT`.
      k: number of the product, 4 x that of the rows + that of the columns.
    """
    images, rows, columns = size
    channels = tiles.shape[-1]
    dtype = jnp.promote_types(tiles.dtype, jnp.float32)
    places, weights = jnp.asarray(pixels[0]), jnp.asarray(pixels[1], dtype)

    def pixel(i, j):
        start = first[0], first[1] + i // 2, i % 2, j // 2, j % 2, 0
        block = lax.dynamic_slice(tiles, start, (images, rows, 1, columns, 1, channels))
        return block.reshape(-1, channels).astype(dtype)

    def two(index, pixel):
        one, other = (weights[index, n] * pixel(places[index, n]) for n in range(2))
        return one + other

    return two(k % 4, lambda j: two(k // 4, lambda i: pixel(i, j)))
