"""Figures of experiments: mean ROC curves, and what a learning rate does."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mtl_jax.drawing import roc
from mtl_jax.evaluation import metrics

# Values of a panel: by curve, learning rate to the values of its runs.
Panel = Mapping[str, Mapping[float, Sequence[float]]]


def plot_mean_roc(
    curves: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]], path: pathlib.Path
) -> None:
    """Writes the mean ROC curve of each method's runs (Pascal et al. 2022, figure 1).

    A band shows one standard deviation of the sensitivity either way.

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
        mean, deviation = np.mean(sensitivities, 0), np.std(sensitivities, 0)
        area = np.mean([metrics.auc(*run) for run in runs])
        axes.plot(
            rates, mean, color=colour, linestyle=dash, label=f"{name}, AUC {area:.3f}"
        )
        if len(runs) > 1:
            low, high = np.clip([mean - deviation, mean + deviation], 0, 1)
            axes.fill_between(rates, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, fontsize=9)
    save(figure, path)


def plot_learning_rates(panels: Mapping[str, Panel], path: pathlib.Path) -> None:
    """Writes values against the learning rate (Pascal et al. 2022, figures 2 and 3).

    Lines join the means of the runs, a band shows one standard deviation either way.

    Args:
      panels: by what stands beside the axis; four in a row.
      path: without its ending; a PNG and a PDF are written.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    for place, (title, panel) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set(xscale="log", xlabel="learning rate", ylabel=title)
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        for (name, values), (colour, dash) in zip(
            panel.items(), roc.styles(), strict=False
        ):
            rates = sorted(values)
            mean = np.array([np.mean(values[rate]) for rate in rates])
            deviation = np.array([np.std(values[rate]) for rate in rates])
            axes.plot(
                rates, mean, color=colour, linestyle=dash, marker="o", ms=4, label=name
            )
            axes.fill_between(
                rates,
                mean - deviation,
                mean + deviation,
                color=colour,
                alpha=0.18,
                linewidth=0,
            )
        if place == 1:
            axes.legend(fontsize=8)
    save(figure, path)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG and as PDF; `path` is without its ending."""
    FigureCanvasAgg(figure).print_figure(path.with_suffix(".png"), dpi=200)
    # No date in it: the same numbers give the same file.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
