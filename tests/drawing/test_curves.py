import numpy as np
from PIL import Image

from mtl_jax.drawing import curves


def coloured(path):
    """How many pixels of a figure are neither grey nor white."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=-1) > 40).sum())


def test_mean_roc_of_runs_and_of_one(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 10])
    runs = [(rng.normal(size=40) + labels, labels) for _ in range(3)]
    curves.plot_mean_roc({"MTL-IO": runs, "STL": runs[:1]}, tmp_path / "roc")
    assert coloured(tmp_path / "roc.png") > 1000
    assert (tmp_path / "roc.pdf").read_bytes().startswith(b"%PDF")


def test_learning_rates_in_a_row_of_panels(tmp_path):
    panel = {"MTL-IO": {1e-4: [0.5, 0.7], 1e-3: [0.8, 0.9]}, "STL": {1e-4: [0.6]}}
    for count in (1, 5):
        panels = {f"metric {i}": panel for i in range(count)}
        curves.plot_learning_rates(panels, tmp_path / f"rates{count}")
    one, five = (Image.open(tmp_path / f"rates{n}.png").size for n in (1, 5))
    assert (five[0], five[1]) == (4 * one[0], 2 * one[1])
    assert coloured(tmp_path / "rates5.png") > 5000
    # The same numbers give the same file.
    first = (tmp_path / "rates1.pdf").read_bytes()
    curves.plot_learning_rates({"metric 0": panel}, tmp_path / "rates1")
    assert (tmp_path / "rates1.pdf").read_bytes() == first
