import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtl_jax.reporting.drawing import curves


def coloured(path):
    """How many pixels of a figure are neither grey nor white."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=-1) > 40).sum())


def panel_of(**curves):
    """A panel of curves, each as {x: [y of every run]}."""
    rows = [
        (name, x, y)
        for name, curve in curves.items()
        for x, values in curve.items()
        for y in values
    ]
    return pd.DataFrame(rows, columns=["curve", "x", "y"])


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are before they are saved."""
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    return figures


def test_means_of_methods(drawn, tmp_path):
    rows = [
        ("MTL-IO", "auc", 90.0, 2.0),
        ("MTL-IO", "fovea_error", 1.0, np.nan),
        ("Vanilla MTL", "auc", 80.0, 1.0),
    ]
    cells = pd.DataFrame(rows, columns=["line", "metric", "mean", "std"])
    curves.plot_means(cells, tmp_path / "methods")
    auc, fovea = drawn[0].axes
    assert [text.get_text() for text in auc.get_yticklabels()] == [
        "MTL-IO",
        "Vanilla MTL",
    ]
    assert auc.get_xlabel() == "AUC, %\nhigher is better"
    dots = [bars.lines[0] for bars in auc.containers]
    assert [(*dot.get_xydata()[0], dot.get_marker()) for dot in dots] == [
        (90, 0, "D"),
        (80, 1, "o"),
    ]
    (spread,) = auc.containers[0].lines[2]
    np.testing.assert_allclose(spread.get_segments()[0][:, 0], [88, 92])
    # A single mean is not the best of any.
    (only,) = fovea.containers
    assert (*only.lines[0].get_xydata()[0], only.lines[0].get_marker()) == (1, 0, "o")


def test_mean_roc_of_runs_and_of_one(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 10])
    runs = [(rng.normal(size=40) + labels, labels) for _ in range(3)]
    curves.plot_mean_roc({"MTL-IO": runs, "STL": runs[:1]}, tmp_path / "roc")
    assert coloured(tmp_path / "roc.png") > 1000
    assert (tmp_path / "roc.pdf").read_bytes().startswith(b"%PDF")


def test_learning_rates_in_a_row_of_panels(tmp_path):
    panel = panel_of(IO={1e-4: [0.5, 0.7], 1e-3: [0.8, 0.9]}, STL={1e-4: [0.6]})
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


def test_a_curve_looks_the_same_in_all_panels(tmp_path):
    curve = {1e-4: [0.5, 0.6], 1e-3: [0.7, 0.9]}
    panels = {"AUC": panel_of(STL=curve, PCGrad=curve), "Dice": panel_of(PCGrad=curve)}
    curves.plot_learning_rates(panels, tmp_path / "rates")
    pixels = np.asarray(Image.open(tmp_path / "rates.png").convert("RGB"))
    height, width = pixels.shape[:2]
    # Without the legend, which is above both.
    halves = pixels[height // 4 :, : width // 2], pixels[height // 4 :, width // 2 :]
    blue, orange = ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00))
    # In the first panel the later curve covers the other.
    assert (halves[0] == orange).all(-1).any()
    assert (halves[1] == orange).all(-1).any()
    assert not (halves[1] == blue).all(-1).any()


def test_how_many_runs_a_mean_is_of(drawn, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 10])
    runs = [(rng.normal(size=40) + labels, labels) for _ in range(3)]
    curves.plot_mean_roc({"MTL-IO": runs, "STL": runs[:2]}, tmp_path / "roc")
    panel = panel_of(IO={1e-4: [0.5, 0.7], 1e-3: [0.8]}, STL={1e-4: [0.6, 0.6]})
    curves.plot_learning_rates({"AUC": panel}, tmp_path / "rates")
    roc, rates = drawn
    _, *names = (text.get_text() for text in roc.axes[0].get_legend().get_texts())
    assert [name[-3:] for name in names] == ["(3)", "(2)"]
    (legend,) = rates.legends
    assert legend.get_title().get_text() == "validation split, means of 2 runs"
    (mark,) = rates.axes[0].texts
    assert (mark.get_text(), mark.xy) == ("n = 1", (1e-3, 0.8))


def test_bands_are_of_the_sample_standard_deviation(drawn, tmp_path):
    panel = panel_of(IO={1e-4: [0.5, 0.7, 0.9], 1e-3: [0.8]})
    curves.plot_learning_rates({"AUC": panel}, tmp_path / "rates")
    (band,) = drawn[0].axes[0].collections
    heights = {tuple(np.round(point, 9)) for point in band.get_paths()[0].vertices}
    # The deviation of 0.5, 0.7 and 0.9 is 0.2; a single run has no band.
    assert heights == {(1e-4, 0.5), (1e-4, 0.9), (1e-3, 0.8)}


def test_scores_over_epochs_and_over_time(drawn, tmp_path):
    epochs = {"STL": {4: [0.5, 0.7], 8: [0.8, 0.9]}, "MTL-IO": {4: [0.6, 0.6]}}
    minutes = {"STL": {2.0: [0.5, 0.7], 4.0: [0.8, 0.9]}, "MTL-IO": {1.0: [0.6, 0.6]}}
    panels = panel_of(**epochs), panel_of(**minutes)
    curves.plot_progress(*panels, tmp_path / "progress")
    by_epoch, by_time = drawn[0].axes
    assert by_epoch.get_xlabel() == "epochs"
    assert by_time.get_xlabel() == "minutes of training"
    for axes, panel in ((by_epoch, epochs), (by_time, minutes)):
        assert axes.get_xscale() == "linear"
        for line, curve in zip(axes.lines, panel.values(), strict=True):
            assert list(line.get_xdata()) == list(curve)
            means = [np.mean(values) for values in curve.values()]
            np.testing.assert_allclose(line.get_ydata(), means)


def test_where_no_time_is_known_there_is_no_panel_of_it(drawn, tmp_path):
    curves.plot_progress(panel_of(STL={1: [0.5]}), panel_of(), tmp_path / "progress")
    (panel,) = drawn[0].axes
    assert panel.get_xlabel() == "epochs"
