"""Reliability diagrams: how often what is predicted with a probability is so."""

import pathlib
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mtl_jax import metrics
from mtl_jax.reporting.drawing import curves, roc

_GREY = "#767676"

# Scores [N] and labels [N] by the name of a curve.
Panel = Mapping[str, tuple[ArrayLike, ArrayLike]]


def plot_reliability(
    panels: Mapping[str, Mapping[str, Panel]], path: pathlib.Path
) -> None:
    """Writes reliability diagrams (Guo et al. 2017, figure 1).

    A point is a bin of images, see `metrics.reliability`, with their number beside it.
    On the diagonal, probabilities are right. The legends have the expected calibration
    error.

    Args:
      panels: the panels of each row by their title, by the name of the row.
      path: path without suffix; a PNG and a PDF are written.
    """
    titles = list(dict.fromkeys(title for row in panels.values() for title in row))
    figure = Figure(
        figsize=(3.2 * len(titles), 3.7 * len(panels)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), len(titles), squeeze=False)
    for line, (name, row) in zip(grid, panels.items(), strict=True):
        for axes, title in zip(line, titles, strict=True):
            if title in row:
                _draw_panel(axes, f"{name}, {title}", row[title])
            else:
                axes.set_axis_off()
    curves.save(figure, path)


def _draw_panel(axes: Axes, title: str, panel: Panel) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8)
    for (name, scored), (colour, dash) in zip(
        panel.items(), roc.styles(), strict=False
    ):
        found = metrics.reliability(*scored)
        error = metrics.calibration_error(*scored)
        axes.plot(
            found.probability,
            found.share,
            color=colour,
            linestyle=dash,
            marker="o",
            markersize=4,
            label=f"{name}, error {error:.3f}",
        )
        # The first curve has its numbers above, the second below.
        place = (3, 3) if name == next(iter(panel)) else (3, -9)
        for probability, share, count in zip(*found, strict=True):
            axes.annotate(
                str(count),
                (probability, share),
                place,
                textcoords="offset points",
                fontsize=6,
                color=colour,
            )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.08, 1.08), aspect="equal")
    axes.set_xlabel("mean probability", fontsize=8)
    axes.set_ylabel("share of class 1", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=7, frameon=False
    )
