"""Times the passes of a network's 3x3 convolutions, each by itself."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import machine
from mtl_jax.experiments import arithmetic
from mtl_jax.experiments.benchmark import Setting
from mtl_jax.experiments.benchmark_table import or_dash
from mtl_jax.models import convolution

PASSES = ("forward", "input gradient", "weight gradient")
FORMS = ("plain", "ours", "other")
# Maps an image [B, H, W, Cin], a kernel and a gradient [B, H, W, Cout] to calls that
# make a pass of `PASSES` and return when it is finished.
Passes = Callable[[Any, Any, Any], Mapping[str, Callable[[], Any]]]


def measure(
    setting: Setting, num_rounds: int, others: Passes | None = None
) -> list[dict[str, Any]]:
    """Times each pass in XLA's plain form, in that of `conv_3x3`, and in another's.

    The forms take turns, so that other work on the machine slows all of them.

    Args:
      setting: network and batch; the arrays are float32.
      num_rounds: calls of each.
      others: makes the passes of another library.

    Returns:
      For each pass of each different layer: the setting, the number of `cores`,
      `pixels` of a side, `inputs` and `outputs` (channels), `pass`, its `flops` by the
      plain arithmetic, and the median seconds `plain`, `ours` and `other`, None without
      `others`. They are those of programs without loops. In a loop, the plain weight
      gradient takes far longer on a CPU (jax issue 12868).
    """
    side = setting.image_size
    images = np.zeros((setting.batch_size, side, side, 3), np.float32)
    rows = []
    for image, kernel in arithmetic.convolutions(setting.model(), images):
        rows += [
            {**dataclasses.asdict(setting), "cores": machine.num_cores(), **row}
            for row in _measure_layer(image, kernel, num_rounds, others)
        ]
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the results as Markdown, a line for each layer."""
    lines = [
        "Milliseconds: plain / ours / PyTorch's.\n",
        f"| batch, pixels, channels | GFLOP | {' | '.join(PASSES)} |",
        "|---|---|---|---|---|",
    ]
    for passes in zip(*(rows[i::3] for i in range(3)), strict=True):
        row = passes[0]
        cells = [
            " / ".join(or_dash(of_pass[form], "{:.2f}", 1e-3) for form in FORMS)
            for of_pass in passes
        ]
        lines.append(
            f"| {row['batch_size']}, {row['pixels']}, {row['inputs']} -> "
            f"{row['outputs']} | {row['flops'] / 1e9:.3g} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _measure_layer(
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    num_rounds: int,
    others: Passes | None,
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    shapes = image, kernel, (*image[:3], kernel[-1])
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    forms: dict[str, Mapping[str, Callable[[], Any]]] = {
        "plain": _passes(convolution.plain_conv_3x3, *arrays),
        "ours": _passes(convolution.conv_3x3, *arrays),
    }
    if others:
        forms["other"] = others(*arrays)
    seconds = {name: {key: [] for key in PASSES} for name in forms}
    for calls in forms.values():
        for call in calls.values():
            call()
    for _ in range(num_rounds):
        for key in PASSES:
            for name, calls in forms.items():
                start = time.perf_counter()
                calls[key]()
                seconds[name][key].append(time.perf_counter() - start)
    return [
        {
            "pixels": image[1],
            "inputs": kernel[2],
            "outputs": kernel[3],
            "pass": key,
            "flops": 2.0 * np.prod(image[:3]) * np.prod(kernel),
            "other": None,
            **{name: statistics.median(times[key]) for name, times in seconds.items()},
        }
        for key in PASSES
    ]


def _passes(
    convolve: Callable[[jax.Array, jax.Array], jax.Array], *arrays: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """As `Passes`, of a convolution that JAX derives."""

    def forward(x, kernel, gradient):
        # In training: `conv_3x3` alone is the plain convolution.
        return jax.vjp(convolve, x, kernel)[0]

    def backward(index):
        return lambda x, kernel, gradient: jax.vjp(convolve, x, kernel)[1](gradient)[
            index
        ]

    on_device = [jnp.asarray(array) for array in arrays]
    jitted = [jax.jit(f) for f in (forward, backward(0), backward(1))]
    return {
        key: lambda f=f: f(*on_device).block_until_ready()
        for key, f in zip(PASSES, jitted, strict=True)
    }
