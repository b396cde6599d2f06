"""Counts the arithmetic of networks, and measures how fast a device multiplies."""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import tasks as tasks_lib

# Side of the matrices whose product is timed. Accelerators need larger ones.
MATRIX = {"cpu": 2048}
LARGE_MATRIX = 8192


def forward_flops(
    model: nn.Module, tasks: Sequence[tasks_lib.Task], images: np.ndarray
) -> tuple[list[float], float]:
    """Counts the arithmetic of a forward pass for each task, and for all together."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images.astype(np.float32))

    def count(heads):
        jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, heads=heads))(
            shapes, images.astype(np.float32)
        )
        return _flops(jaxpr.jaxpr)

    names = [task.name for task in tasks]
    return [count([name]) for name in names], count(names)


def convolutions(
    model: nn.Module, images: np.ndarray
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Finds the different 3x3 convolutions of stride 1 in a network.

    Returns:
      The shapes [B, H, W, Cin] of the image and [3, 3, Cin, Cout] of the kernel of
      each, in the order of the network.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    jaxpr = jax.make_jaxpr(model.apply)(shapes, images).jaxpr
    found = {}
    for equation in _equations(jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            image, kernel = (x.aval.shape for x in equation.invars)
            if kernel[:2] == (3, 3) and equation.outvars[0].aval.shape[:3] == image[:3]:
                found[image, kernel] = None
    return list(found)


def _flops(jaxpr: Any) -> float:
    """Counts the additions and multiplications in convolutions and products."""
    total = 0.0
    for equation in _equations(jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += 2 * equation.outvars[0].aval.size * kernel.size / kernel.shape[-1]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            depth = np.prod([left.shape[axis] for axis in contracted])
            total += 2 * equation.outvars[0].aval.size * depth
    return float(total)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a program and of those within."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def matmul_flops_per_second(dtype: Any) -> float:
    """Measures how fast this device multiplies large matrices."""
    side = MATRIX.get(jax.default_backend(), LARGE_MATRIX)
    matrix = jnp.ones((side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds)
