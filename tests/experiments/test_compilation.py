"""Steps are compiled for devices that are not there."""

import os
import warnings

import pytest
import small_encoder  # noqa: F401

from mtl_jax.experiments import benchmark, compilation


def test_least_seconds():
    """By hand: 197 TFLOP take a second, and 200 GB a second leave a chip."""
    compute, reduce = compilation.least_seconds(197e12, 100e9, 4, "TPU v5 lite")
    assert compute == 1
    # A quarter of the sum is made here: three quarters leave, and as much again.
    assert reduce == pytest.approx(2 * 75e9 / 200e9)
    assert compilation.least_seconds(1.0, 1.0, 1, "TPU v5 lite")[1] == 0
    assert compilation.least_seconds(1.0, 1.0, 4, "TPU v4") == (None, None)


def test_complaints_are_kept():
    with compilation._complaints() as complaints:
        warnings.warn("by JAX", UserWarning, stacklevel=1)
        os.write(2, b"by XLA\n")
        os.write(2, b"W1127 16:12:33.128704   11583 llo_loop.cc:101] an empty loop\n")
        os.write(2, b"W1127 16:12:34.128704   11584 llo_loop.cc:101] another\n")
        os.write(2, b"E1127 16:12:35.128704   11584 alarm.cc:9] ***\nslow\n***\n")
    assert complaints == [
        "by JAX",
        "stderr, 1 times: by XLA",
        "llo_loop.cc:101, 2 times: an empty loop",
        "alarm.cc:9, 1 times: slow",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", benchmark.REGISTERED)
def test_a_step_compiles_for_a_tpu(method):
    pytest.importorskip("libtpu")
    setting = benchmark.Setting("small", 1 / 16, 32, 2, "bfloat16")
    row = compilation.compile_step(setting, method, compilation.devices("tpu:v5e:2x2"))
    assert row["devices"] == 4
    # The parameters and Adam's moments. Temporaries of a network so small may all find
    # room beside the arithmetic units, and none in the chip's memory.
    assert row["argument_bytes"] > 3 * 4 * row["parameters"]
    # Each gradient of each parameter is reduced at least once.
    assert row["all_reduces"]["num_bytes"] > 4 * row["parameters"]
    common, _, header, rule, line, *_ = compilation.table([row]).splitlines()
    assert "dtype bfloat16, remat no, devices 4, steps a call 1" in common
    assert header.count("|") == rule.count("|") == line.count("|")


@pytest.mark.slow
def test_features_computed_anew_need_less_memory():
    def memory(remat):
        setting = benchmark.Setting("vgg13", 1 / 16, 64, 4, "float32", remat)
        row = compilation.compile_step(setting, "vanilla", compilation.devices("cpu"))
        return row["memory_bytes"]

    assert memory(True) < 0.9 * memory(False)
