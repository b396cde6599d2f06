"""Figures of experiments: means, ROC curves, learning rates, and training over time.

A panel of curves is a table with the columns `curve`, `x` and `y`: one row for each run
at each point of its curve. Curves are drawn in the order in which the panel names them.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from mtl_jax import metrics
from mtl_jax.reporting.drawing import roc
from mtl_jax.reporting.tables import best

# The best mean of a metric, and the others (Okabe and Ito's blue and orange).
_BEST, _OTHERS = "#D55E00", "#0072B2"


def plot_means(cells: pd.DataFrame, path: pathlib.Path) -> None:
    """Writes the means of a table: a panel for each metric, a row for each method.

    Bars show one sample standard deviation either way. The best mean is a diamond.

    Args:
      cells: see `tables.summarize`.
      path: path without suffix; a PNG and a PDF are written.
    """
    shown = [
        metric
        for metric in metrics.every().values()
        if (cells.metric == metric.name).any() and not metric.is_constant
    ]
    lines = list(cells.line.unique())
    figure = Figure(
        figsize=(1.5 + 1.7 * len(shown), 1.1 + 0.24 * len(lines)), layout="constrained"
    )
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, shown, strict=True):
        own = cells[cells.metric == metric.name]
        for line, mean, deviation in zip(
            own.line, own["mean"], own["std"].fillna(0), strict=True
        ):
            is_best = mean == best(own["mean"], metric)
            axes.errorbar(
                mean,
                lines.index(line),
                xerr=deviation,
                fmt="D" if is_best else "o",
                color=_BEST if is_best else _OTHERS,
                markersize=5,
                elinewidth=1,
            )
        direction = f"\n{metric.better} is better" if metric.better else ""
        axes.set_xlabel(metric.column + direction, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(lines)), lines)
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    save(figure, path)


def plot_mean_roc(
    curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]], path: pathlib.Path
) -> None:
    """Writes the mean ROC curve of each method's runs (Pascal et al. 2022, figure 1).

    A band shows one sample standard deviation of the sensitivity either way. The legend
    has the number of runs in brackets.

    Args:
      curves: name of the method to (scores [N], labels [N]) of its runs.
      path: path without suffix; a PNG and a PDF are written.
    """
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes = figure.add_subplot()
    roc.draw_frame(axes)
    rates = np.linspace(0, 1, 401)
    for (name, runs), (colour, dash) in zip(curves.items(), roc.styles(), strict=False):
        sensitivities = []
        for scores, labels in runs:
            false_positive, true_positive = metrics.roc(scores, labels)
            # Several points may share a rate; the highest of them is the last.
            last = np.append(np.diff(false_positive) > 0, True)
            sensitivities.append(
                np.interp(rates, false_positive[last], true_positive[last])
            )
        mean = np.mean(sensitivities, 0)
        areas = [area for run in runs if (area := metrics.auc(*run)) is not None]
        label = f"{name}, AUC {np.mean(areas):.3f} ({len(runs)})"
        axes.plot(rates, mean, color=colour, linestyle=dash, label=label)
        if len(runs) > 1:
            deviation = np.std(sensitivities, 0, ddof=1)
            low, high = np.clip([mean - deviation, mean + deviation], 0, 1)
            axes.fill_between(rates, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, fontsize=9)
    save(figure, path)


def plot_learning_rates(panels: Mapping[str, pd.DataFrame], path: pathlib.Path) -> None:
    """Writes validation results against the learning rate.

    Figures 2 and 3 of Pascal et al. 2022 show the best of each metric and the smallest
    of each loss over the epochs. Lines join the means of the runs. A band shows one
    sample standard deviation either way. A mean of fewer runs than the largest has
    their number beside it. A curve looks the same in all panels.

    Args:
      panels: panels by the label of their vertical axis; drawn four in a row.
      path: path without suffix; a PNG and a PDF are written.
    """
    drawn = [("learning rate", label, panel) for label, panel in panels.items()]
    _plot_panels(drawn, "log", path)


def plot_progress(
    epochs: pd.DataFrame, minutes: pd.DataFrame, path: pathlib.Path
) -> None:
    """Writes the validation score of methods over epochs, and over their own time.

    Methods make different numbers of updates and passes in an epoch. At equal epochs
    they have seen the same images. At equal time they have cost the same.

    Args:
      epochs: scores by epoch.
      minutes: scores by minutes of training; empty if no time is known.
      path: path without suffix; a PNG and a PDF are written.
    """
    drawn = [
        ("epochs", "validation score", epochs),
        ("minutes of training", "validation score", minutes),
    ]
    _plot_panels([panel for panel in drawn if len(panel[-1])], "linear", path)


def _plot_panels(
    panels: Sequence[tuple[str, str, pd.DataFrame]], scale: str, path: pathlib.Path
) -> None:
    """Draws panels (xlabel, ylabel, table); `scale` is that of the x axis."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    names = dict.fromkeys(name for *_, panel in panels for name in panel["curve"])
    styles = dict(zip(names, roc.styles(), strict=False))
    num_runs = max(panel.groupby(["curve", "x"]).size().max() for *_, panel in panels)
    lines = {}
    for number, (xlabel, ylabel, panel) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set(xscale=scale, xlabel=xlabel, ylabel=ylabel)
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        axes.margins(0.12)
        for name, curve in panel.groupby("curve", sort=False):
            lines[name] = _draw_means(axes, curve, num_runs, *styles[name])
        if scale == "log":
            rates = sorted(set(panel["x"]))
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
            axes.xaxis.set_minor_locator(NullLocator())
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
    axes: Axes, curve: pd.DataFrame, num_runs: int, colour: str, dash: str
) -> Line2D:
    """Draws one curve of a panel, and marks means of fewer than `num_runs` runs."""
    points = curve.groupby("x")["y"].agg(["mean", "std", "count"])
    x, mean = points.index, points["mean"]
    # A single run has no band.
    deviation = points["std"].fillna(0)
    axes.fill_between(
        x, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0
    )
    for point in points[points["count"] < num_runs].itertuples():
        axes.annotate(
            f"n = {point.count}",
            (point.Index, point.mean),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=colour,
        )
    (line,) = axes.plot(x, mean, color=colour, linestyle=dash, marker="o", ms=4)
    return line


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG and as PDF; `path` has no suffix."""
    roc.show_names_as_they_are(figure)
    FigureCanvasAgg(figure).print_figure(path.with_suffix(".png"), dpi=200)
    # Without a date, the same numbers give the same file.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
