import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mtl_jax import methods, tasks
from mtl_jax.experiments import (
    arithmetic,
    benchmark,
    benchmark_table,
    hlo,
    layer_benchmark,
)
from mtl_jax.models import MultiTaskUNet, convolution
from mtl_jax.training import step as steps


def test_arithmetic_of_a_convolution_and_a_product():
    """Also where they stand inside a jit, and 1x1 as a product."""

    def program(x, kernel, weights):
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.jit(lambda y: y @ weights)(y)

    jaxpr = jax.make_jaxpr(program)(
        jnp.zeros((2, 6, 5, 3)), jnp.zeros((3, 3, 3, 4)), jnp.zeros((4, 7))
    )
    convolution = 2 * (2 * 6 * 5 * 4) * (3 * 3 * 3)
    product = 2 * (2 * 6 * 5 * 7) * 4
    assert arithmetic._flops(jaxpr.jaxpr) == convolution + product


def test_arithmetic_of_the_network():
    """By hand: VGG-13 at 256 x 256, two operations for each weight and pixel."""
    images = np.zeros((1, 256, 256, 3), np.uint8)
    routes, whole = arithmetic.forward_flops(
        MultiTaskUNet(encoder="vgg13"), tasks.build(), images
    )
    pairs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    pairs += [(256, 512), (512, 512), (512, 512), (512, 512)]
    encoder = sum(
        2 * 9 * a * b * (256 >> (i // 2)) ** 2 for i, (a, b) in enumerate(pairs)
    )
    assert routes[0] == pytest.approx(encoder, rel=1e-5)
    stages = [(1024, 512, 256), (512, 256, 128), (256, 128, 64), (128, 64, 64)]
    decoder = sum(
        2 * 9 * (a * b + b * c) * (32 << i) ** 2 for i, (a, b, c) in enumerate(stages)
    )
    # Upsampling and the 1x1 convolutions come on top.
    assert encoder + decoder < whole < 1.04 * (encoder + decoder)
    assert routes[1:] == [pytest.approx(whole, rel=1e-4)] * 3


def test_convolutions_of_the_network():
    """By hand; the second convolutions of blocks 4 and 5 have other sizes."""
    images = np.zeros((2, 32, 32, 3), np.float32)
    network = MultiTaskUNet(encoder="vgg13", width=1 / 32)
    layers = [(32, 3, 2), (32, 2, 2), (16, 2, 4), (16, 4, 4), (8, 4, 8), (8, 8, 8)]
    layers += [(4, 8, 16), (4, 16, 16), (2, 16, 16)]
    layers += [(4, 32, 16), (4, 16, 8), (8, 16, 8), (8, 8, 4), (16, 8, 4), (16, 4, 2)]
    layers += [(32, 4, 2)]
    assert arithmetic.convolutions(network, images) == [
        ((2, side, side, inputs), (3, 3, inputs, outputs))
        for side, inputs, outputs in layers
    ]


def test_strided_convolutions_are_not_among_them():
    images = np.zeros((1, 32, 32, 3), np.float32)
    network = MultiTaskUNet(encoder="resnet34", width=1 / 32)
    found = arithmetic.convolutions(network, images)
    assert found[0] == ((1, 8, 8, 2), (3, 3, 2, 2))
    # The first convolutions of its later stages have a stride of 2.
    assert ((1, 8, 8, 2), (3, 3, 2, 4)) not in found
    assert ((1, 4, 4, 4), (3, 3, 4, 4)) in found


def test_passes_of_a_layer_are_those_of_torch():
    torch_steps = pytest.importorskip("mtl_jax.experiments.torch_steps")
    rng = np.random.default_rng(0)
    shapes = (2, 6, 5, 3), (3, 3, 3, 4), (2, 6, 5, 4)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    ours, plain, theirs = (
        layer_benchmark._passes(convolution.conv_3x3, *arrays),
        layer_benchmark._passes(convolution.plain_conv_3x3, *arrays),
        torch_steps.convolution_passes(*arrays),
    )
    axes = [(0, 2, 3, 1), (0, 2, 3, 1), (2, 3, 1, 0)]
    for name, order in zip(layer_benchmark.PASSES, axes, strict=True):
        expected = theirs[name]().permute(order).numpy()
        for form in (ours, plain):
            np.testing.assert_allclose(form[name](), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_measurement_of_layers_and_its_table():
    setting = benchmark.Setting("vgg13", 1 / 32, 32, 2, "float32")
    rows = layer_benchmark.measure(setting, 1)
    assert len(rows) == 3 * 16
    assert all(min(row["plain"], row["ours"]) > 0 for row in rows)
    assert all(row["other"] is None for row in rows)
    assert {row["flops"] for row in rows[:3]} == {2 * (2 * 32 * 32) * 9 * 3 * 2}
    *_, header, _, first = layer_benchmark.table(rows[:3]).splitlines()
    assert header.count("|") == first.count("|")
    assert first.startswith("| 2, 32, 3 -> 2 | ")
    assert first.count(" / - ") == 3
    assert len(layer_benchmark.table(rows).splitlines()) == 4 + 16


def test_floors():
    routes, whole = [1.0, 3.0, 3.0, 3.0], 3.0
    floors = {
        name: method.floor(routes, whole) for name, method in benchmark.METHODS.items()
    }
    assert {floors.pop(name) for name in methods.AGGREGATORS} == {27}
    assert {floors.pop(name) for name in ("famo", "dwa", "stch")} == {9}
    some = ("vanilla", "independent", "alternating", "random_grouping", "gradnorm")
    some += ("gradnorm_stacked", "per_task", "independent_unrolled", "pcgrad_vmap")
    assert {name: floors[name] for name in some} == {
        "vanilla": 9,
        "independent": 30,
        "alternating": 30,
        "random_grouping": 18,
        # A vanilla step, and three gradients through a decoder that costs 2.
        "gradnorm": 15,
        "gradnorm_stacked": 27,
        "per_task": 27,
        "independent_unrolled": 30,
        "pcgrad_vmap": 27,
    }


@pytest.mark.slow
def test_a_measurement_beside_torch_and_its_table(monkeypatch):
    torch_steps = pytest.importorskip("mtl_jax.experiments.torch_steps")
    monkeypatch.setitem(arithmetic.MATRIX, "cpu", 256)
    setting = benchmark.Setting(
        "vgg13", 1 / 16, 32, 2, "float32", steps_per_dispatch=2, memory="device"
    )
    rates = {"from_memory": 100.0, "from_files": 50.0}
    rows = benchmark.measure(setting, ["vanilla"], 1, torch_steps.programs, rates)
    assert [row["method"] for row in rows] == [
        "vanilla",
        "torch",
        "torch, channels last",
    ]
    assert [row["parameters"] for row in rows] == [68376] * 3
    assert rows[1]["floor_over_vanilla"] == rows[2]["floor_over_vanilla"] > 3
    row = rows[0]
    assert row["time_over_vanilla"] == row["floor_over_vanilla"] == 1
    low, high = row["step_seconds_quartiles"]
    assert 0 < low <= row["step_seconds"] <= high
    assert row["images_per_second"] == pytest.approx(2 / row["step_seconds"])
    assert row["flops_per_second"] > 0
    assert row["compile_seconds"] > 0
    assert row["share_of_matmul"] > 0
    # The parameters and Adam's moments at least.
    assert row["memory_bytes"] > 3 * 4 * row["parameters"]
    assert row["input"] == {
        "from_memory": pytest.approx(100 / row["images_per_second"]),
        "from_files": pytest.approx(50 / row["images_per_second"]),
    }
    common, _, header, rule, line = benchmark_table.table([row]).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert common == (
        "encoder vgg13 x 0.0625, pixels 32, batch 2, dtype float32, remat no, "
        "devices 1, steps a call 2, images on device"
    )
    assert "| vanilla | 68,376 |" in line
    # What differs is a column.
    other = {**row, "batch_size": 4}
    common, _, header, *_ = benchmark_table.table([row, other]).splitlines()
    assert "batch" not in common
    assert "| batch |" in header


@pytest.mark.parametrize(
    "method",
    ["vanilla", pytest.param("independent_unrolled", marks=pytest.mark.slow)],
)
def test_xla_counts_as_much_arithmetic_as_the_formula(method, monkeypatch):
    # As on an accelerator: the products of a CPU's weight gradient are a loop.
    monkeypatch.setattr(convolution, "conv_3x3", convolution.plain_conv_3x3)
    setting = benchmark.Setting("small", 1.0, 128, 1, "float32")
    tasks_, batch = tasks.build(), benchmark.random_batch(1, 128)
    model = setting.model()
    step, optimizer = benchmark.METHODS[method].create(model, tasks_)
    state = jax.eval_shape(
        lambda: steps.create_train_state(model, optimizer, jax.random.key(0))
    )
    counted = hlo.flops(jax.jit(step).lower(state, batch).compile())
    formula = benchmark.METHODS[method].floor(
        *arithmetic.forward_flops(model, tasks_, batch["image"])
    )
    assert counted == pytest.approx(formula, rel=0.05)


@pytest.mark.slow
def test_simulated_devices_share_a_batch(tmp_path):
    output = tmp_path / "rows.json"
    script = pathlib.Path(__file__).parents[2] / "scripts" / "benchmark.py"
    flags = ["--methods=vanilla", "--encoders=vgg13", "--width=0.0625", "--steps=1"]
    flags += ["--image_sizes=32", "--batch_sizes=16", "--devices=1,2"]
    flags += ["--memory=device"]
    command = [sys.executable, script, *flags, f"--output={output}"]
    subprocess.run(command, check=True)
    one, two = json.loads(output.read_text())
    assert (one["devices"], two["devices"]) == (1, 2)
    assert two["xla_flops"] == pytest.approx(one["xla_flops"], rel=0.1)
    assert two["memory_bytes"] < one["memory_bytes"]
