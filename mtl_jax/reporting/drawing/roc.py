"""ROC curves of the glaucoma classifiers of one evaluation."""

import os
from collections.abc import Iterator, Mapping
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import ArrayLike

from mtl_jax import metrics

# Okabe and Ito's colours differ under every form of colour blindness. Their yellow is
# left out: it is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

# With seven colours and four dashes, the first 28 curves differ.
_LINE_STYLES = ("-", "--", "-.", ":")


def plot_roc(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: str | os.PathLike[str]
) -> None:
    """Writes a PNG with one ROC curve per classifier.

    A dotted line marks a specificity of 0.85, where REFUGE reads the sensitivity. If
    the labels have one class only, there is no curve, and the legend says so.

    Args:
      curves: name to (scores [N], labels [N] of zeros and ones).
      path: the file to write, in a folder that exists.
    """
    # Unlike pyplot, a canvas of its own needs no display and frees the figure.
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_frame(axes)
    for (name, (scores, labels)), style in zip(curves.items(), styles(), strict=False):
        _draw_curve(axes, name, scores, labels, *style)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, fontsize=9)
    show_names_as_they_are(figure)
    canvas.print_figure(path, format="png", dpi=150)


def show_names_as_they_are(figure: Figure) -> None:
    """Keeps matplotlib from reading a `$` in a name as the beginning of a formula.

    `parse_math=False` does so too, but not where a text is wrapped.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text), "as found"
        text.set_text(text.get_text().replace("$", r"\$"))


def styles() -> Iterator[tuple[str, str]]:
    """Yields the colour and dashes of the first curve, the second, and so on."""
    return zip(cycle(_COLOURS), cycle(_LINE_STYLES), strict=False)


def draw_frame(axes: Axes) -> None:
    """Draws the axes, the line of chance, and the operating point of REFUGE."""
    grey = "#767676"
    axes.plot([0, 1], [0, 1], color=grey, linewidth=0.8, label="chance")
    axes.axvline(1 - metrics.SPECIFICITY, color=grey, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"specificity {metrics.SPECIFICITY}",
        (1 - metrics.SPECIFICITY, 1.02),
        ha="center",
        va="bottom",
        color=grey,
        fontsize=9,
    )
    axes.set(
        xlabel="1 − specificity (false-positive rate)",
        ylabel="sensitivity (true-positive rate)",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(
    axes: Axes,
    name: str,
    scores: ArrayLike,
    labels: ArrayLike,
    colour: str,
    line_style: str,
) -> None:
    area = metrics.auc(scores, labels)
    if area is None:
        axes.plot([], [], " ", label=f"{name} (one class only)")
        return
    axes.plot(
        *metrics.roc(scores, labels),
        color=colour,
        linestyle=line_style,
        linewidth=1.8,
        label=f"{name} (AUC {area:.3f})",
    )
