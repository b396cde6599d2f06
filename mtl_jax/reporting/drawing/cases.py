"""Figures of one photograph.

They show the masks and points that several methods find in it, maps of a point, and the
gradient map of its diagnosis.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Polygon, Rectangle
from matplotlib.patheffects import withStroke

from mtl_jax import tasks
from mtl_jax.inference.outlines import Marks
from mtl_jax.reporting.drawing.curves import save

# Okabe and Ito's yellow and sky blue stand out from an orange fundus. The signs tell
# the points of two methods apart without colour.
_SIGNS = (("+", "#F0E442"), ("x", "#56B4E9"))
_HALO = (withStroke(linewidth=3, foreground="#000000B0"),)
_POINT: dict[str, Any] = {"ms": 7, "linestyle": "none", "path_effects": _HALO}
_RING: dict[str, Any] = {**_POINT, "marker": "o", "mfc": "none", "color": "w"}

# The cut-out around a mask is this many times as wide as the mask.
_MARGIN = 2.0


def plot_case(
    photograph: np.ndarray,
    title: str,
    truth: Marks,
    found: Mapping[str, tuple[Marks, str]],
    path: pathlib.Path,
) -> None:
    """Writes what methods find in a photograph (Pascal et al. 2022, figure 4).

    The first panel is the photograph with the annotated points and those that were
    found. The others are cut out around the first mask, the optic disc: they show the
    annotated masks, then those of each method.

    Args:
      photograph: uint8 [H, W, 3].
      title: title above it.
      truth: the annotated marks, in pixels of the photograph.
      found: marks of each method, and its numbers as text. Points are drawn for the
        first two.
      path: path without suffix; a PNG and a PDF are written.
    """
    panels = {"annotated": (truth, ""), **found}
    # At this size the text is as large as that around the figure in print.
    figure = Figure(figsize=(1.9 * (1 + len(panels)), 2.9), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(panels))
    window = _window(photograph.shape, [marks for marks, _ in panels.values()])
    _show(first, photograph, title)
    _draw_points(first, truth, found)
    limits = {}
    if window is not None:
        left, top, side = window
        corner = (left - 0.5, top - 0.5)
        first.add_patch(Rectangle(corner, side, side, fill=False, ec="w", lw=0.8))
        limits["xlim"] = (left - 0.5, left + side - 0.5)
        limits["ylim"] = (top + side - 0.5, top - 0.5)
    for axes, (name, (marks, numbers)) in zip(others, panels.items(), strict=True):
        _show(axes, photograph, name)
        axes.set_xlabel(numbers, fontsize=8)
        for task in tasks.of_kind("segmentation"):
            colour = np.array(task.rgb) / 255
            for line in marks.get(task.name, []):
                axes.add_patch(Polygon(line, fc=(*colour, 0.35), ec=colour, lw=1.6))
        axes.set(**limits)
    colours = (f"{t.name} {t.colour}" for t in tasks.of_kind("segmentation"))
    others[0].set_xlabel(", ".join(colours), fontsize=8)
    save(figure, path)


def plot_fovea_maps(
    photograph: np.ndarray,
    title: str,
    truth: Marks,
    maps: Mapping[str, np.ndarray],
    path: pathlib.Path,
) -> None:
    """Writes a photograph beside maps of a point (Pascal et al. 2022, figure 6).

    The paper's figure has the target map only. All maps share one scale of colours,
    from 0 to 1.

    Args:
      photograph: uint8 [H, W, 3].
      title: title above it.
      truth: the annotated point in pixels of the photograph, by its task, marked in
        every panel; empty where it is not annotated.
      maps: float [H, W] in [0, 1] by title; at least one.
      path: path without suffix; a PNG and a PDF are written.
    """
    figure = Figure(figsize=(2.6 * (1 + len(maps)) + 0.5, 3.0), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(maps))
    _show(first, photograph, title)
    for axes, (name, values) in zip(others, maps.items(), strict=True):
        drawn = _show(axes, values, name, vmax=1)
        _mark_annotated(axes, truth)
    figure.colorbar(drawn, ax=others, shrink=0.8).ax.tick_params(labelsize=8)
    _draw_points(first, truth, {})
    save(figure, path)


def plot_saliency(
    photograph: np.ndarray, saliency: np.ndarray, title: str, path: pathlib.Path
) -> None:
    """Writes a photograph beside the gradient map of its diagnosis.

    The paper has no such figure. What it calls a saliency map is the target map of
    `plot_fovea_maps`.

    Args:
      photograph: uint8 [H, W, 3].
      saliency: float [H, W], clipped at its 99th percentile.
      title: title above the photograph.
      path: path without suffix; a PNG and a PDF are written.
    """
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _show(left, photograph, title)
    _show(right, saliency, "gradient map", vmax=np.percentile(saliency, 99))
    save(figure, path)


def _show(
    axes: Axes, image: np.ndarray, title: str, vmax: float | None = None
) -> AxesImage:
    """Shows a picture, or a map whose colours reach from 0 to `vmax`."""
    axes.set_title(title, fontsize=9, wrap=True)
    axes.set(xticks=[], yticks=[])
    # Cividis is even in lightness, and looks the same to the colour-blind.
    return axes.imshow(
        image,
        cmap="cividis",
        interpolation="nearest",
        vmin=None if vmax is None else 0,
        vmax=vmax,
    )


def _draw_points(
    axes: Axes, truth: Marks, found: Mapping[str, tuple[Marks, str]]
) -> None:
    _mark_annotated(axes, truth)
    for (name, (marks, _)), (sign, colour) in zip(found.items(), _SIGNS, strict=False):
        points = [marks[t.name] for t in _points() if t.name in marks]
        if points:
            xy = np.transpose(points)
            axes.plot(*xy, marker=sign, mew=1.5, color=colour, label=name, **_POINT)
    if axes.get_legend_handles_labels()[0]:
        # A dark legend shows the white ring.
        axes.legend(
            fontsize=7,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            facecolor="#303030",
            labelcolor="w",
        )


def _points() -> list[tasks.Task]:
    return tasks.of_kind("localisation")


def _mark_annotated(axes: Axes, truth: Marks) -> None:
    for task in _points():
        if task.name in truth:
            label = f"{task.name}, annotated"
            axes.plot(*truth[task.name], **_RING, label=label)


def _window(
    shape: tuple[int, ...], marks: list[Marks]
) -> tuple[float, float, float] | None:
    """Finds (left, top, side) of a square around the first mask of the first marks."""
    first = tasks.of_kind("segmentation")[0].name
    for one in marks:
        if len(one.get(first, [])):
            points = np.concatenate(list(one[first]))
            low, high = points.min(0), points.max(0)
            side = min(_MARGIN * float((high - low).max()), *shape[:2])
            corner = (low + high - side) / 2
            left, top = np.clip(corner, 0, np.array(shape[1::-1]) - side)
            return float(left), float(top), side
    return None
