import numpy as np
import pytest
from PIL import Image

from mtl_jax.reporting.drawing import roc

LABELS = np.arange(50) % 5 == 0


def colours(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        counted = image.convert("RGB").getcolors(2**24)
    return {colour for _, colour in counted}


def rgb(code):
    return tuple(bytes.fromhex(code.removeprefix("#")))


def test_each_curve_has_its_colour(tmp_path):
    rng = np.random.default_rng(0)
    curves = {
        name: (rng.normal(2.0 * LABELS), LABELS) for name in ("MTL-IO", "STL", "FC")
    }
    roc.plot_roc(curves, tmp_path / "roc.png")
    found = colours(tmp_path / "roc.png")
    assert {rgb(code) for code in roc._COLOURS[:3]} <= found
    assert rgb(roc._COLOURS[3]) not in found


def test_the_curve_runs_where_it_must(tmp_path):
    roc.plot_roc({"perfect": (LABELS + 0.0, LABELS)}, str(tmp_path / "roc.png"))
    with Image.open(tmp_path / "roc.png") as image:
        picture = np.asarray(image.convert("RGB"))
    y, x = np.nonzero((picture == rgb(roc._COLOURS[0])).all(axis=-1))
    # Up the left edge, then along the top; the legend's line lies low and right.
    curve = (x < 0.5 * picture.shape[1]) | (y < 0.5 * picture.shape[0])
    x, y = x[curve], y[curve]
    left, top = x.min(), y.min()
    assert np.all((x < left + 12) | (y < top + 12))
    assert np.ptp(x) == pytest.approx(np.ptp(y), abs=12)
    assert np.ptp(x) > 0.7 * picture.shape[1]


def test_one_class_still_gives_a_figure(tmp_path):
    # A formula in the name could not be parsed.
    roc.plot_roc({"healthy $x^{$": ([0.1, 0.2], [0, 0])}, tmp_path / "roc.png")
    assert rgb(roc._COLOURS[0]) not in colours(tmp_path / "roc.png")
