"""Figures of experiments: mean ROC curves, learning rates, and training over time."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from mtl_jax import metrics
from mtl_jax.drawing import roc

# Values of a panel: by curve, places on the axis to the values of the runs there.
Panel = Mapping[str, Mapping[float, Sequence[float]]]


def plot_mean_roc(
    curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]], path: pathlib.Path
) -> None:
    """Writes the mean ROC curve of each method's runs (Pascal et al. 2022, figure 1).

    A band shows one sample standard deviation of the sensitivity either way; the number
    of runs is in brackets.

    Args:
      curves: name of the method to (scores [N], labels [N]) of its runs.
      path: without its ending; a PNG and a PDF are written.
    """
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes = figure.add_subplot()
    roc.draw_frame(axes)
    rates = np.linspace(0, 1, 401)
    for (name, runs), (colour, dash) in zip(curves.items(), roc.styles(), strict=False):
        sensitivities = []
        for scores, labels in runs:
            false_positive, true_positive = metrics.roc(scores, labels)
            # Of the points at one rate the highest, as for a single curve.
            last = np.append(np.diff(false_positive) > 0, True)
            sensitivities.append(
                np.interp(rates, false_positive[last], true_positive[last])
            )
        mean, area = np.mean(sensitivities, 0), np.mean([metrics.auc(*r) for r in runs])
        label = f"{name}, AUC {area:.3f} ({len(runs)})"
        axes.plot(rates, mean, color=colour, linestyle=dash, label=label)
        if len(runs) > 1:
            deviation = np.std(sensitivities, 0, ddof=1)
            low, high = np.clip([mean - deviation, mean + deviation], 0, 1)
            axes.fill_between(rates, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, fontsize=9)
    save(figure, path)


def plot_learning_rates(panels: Mapping[str, Panel], path: pathlib.Path) -> None:
    """Writes what validation gave at each rate (Pascal et al. 2022, figures 2 and 3).

    For the paper's figures those are the best of each metric and the smallest of each
    loss over the epochs. Lines join the means of the runs, a band shows one sample
    standard deviation either way. A mean of fewer runs than others has their number
    beside it. A curve looks the same in all panels.

    Args:
      panels: by what stands beside the axis; four in a row.
      path: without its ending; a PNG and a PDF are written.
    """
    drawn = [("learning rate", title, panel) for title, panel in panels.items()]
    _plot_panels(drawn, "log", path)


def plot_progress(epochs: Panel, minutes: Panel, path: pathlib.Path) -> None:
    """Writes the validation score of methods over epochs, and over their own time.

    Methods make a different number of updates and passes in an epoch: at equal epochs
    they have seen the same images, at equal time they have cost the same.

    Args:
      epochs: scores by method and epoch.
      minutes: the same by method and minutes of training, where these are known.
      path: without its ending; a PNG and a PDF are written.
    """
    drawn = [
        ("epochs", "validation score", epochs),
        ("minutes of training", "validation score", minutes),
    ]
    _plot_panels([panel for panel in drawn if panel[-1]], "linear", path)


def _plot_panels(
    panels: Sequence[tuple[str, str, Panel]], scale: str, path: pathlib.Path
) -> None:
    """Draws panels below what stands at their axes; `scale` is the horizontal one's."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    names = dict.fromkeys(name for *_, panel in panels for name in panel)
    styles = dict(zip(names, roc.styles(), strict=False))
    num_runs = max(
        len(values)
        for *_, panel in panels
        for curve in panel.values()
        for values in curve.values()
    )
    lines = {}
    for place, (label, title, panel) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set(xscale=scale, xlabel=label, ylabel=title)
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        axes.margins(0.12)
        for name, curve in panel.items():
            lines[name] = _draw_means(axes, curve, num_runs, *styles[name])
    figure.legend(
        [lines[name] for name in names],
        list(names),
        loc="outside upper center",
        ncols=min(len(names), 2 * columns),
        fontsize=8,
        title="validation split"
        + (f", means of {num_runs} runs" if num_runs > 1 else ""),
        title_fontsize=8,
    )
    save(figure, path)


def _draw_means(
    axes: Axes,
    curve: Mapping[float, Sequence[float]],
    num_runs: int,
    colour: str,
    dash: str,
) -> Line2D:
    """Draws one curve of a panel, and marks means of fewer than `num_runs` runs."""
    places = sorted(curve)
    mean = np.array([np.mean(curve[place]) for place in places])
    deviation = np.array([_deviation(curve[place]) for place in places])
    axes.fill_between(
        places,
        mean - deviation,
        mean + deviation,
        color=colour,
        alpha=0.18,
        linewidth=0,
    )
    for point in zip(places, mean, strict=True):
        if (count := len(curve[point[0]])) < num_runs:
            axes.annotate(
                f"n = {count}",
                point,
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=colour,
            )
    (line,) = axes.plot(places, mean, color=colour, linestyle=dash, marker="o", ms=4)
    return line


def _deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 of a single run, which has no band."""
    return np.std(values, ddof=1) if len(values) > 1 else 0.0


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG and as PDF; `path` is without its ending."""
    FigureCanvasAgg(figure).print_figure(path.with_suffix(".png"), dpi=200)
    # No date in it: the same numbers give the same file.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
