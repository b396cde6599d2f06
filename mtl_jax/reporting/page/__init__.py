"""Writes the report of an experiment as one web page.

The page is a single file that opens from disk and fetches nothing. It holds every
photograph and figure, and its Content-Security-Policy forbids all else. Each photograph
is in it once. The browser draws the outlines that a run found as paths on it, so a few
megabytes hold all runs of an experiment.

`page.html` is the Jinja2 template. This module prepares what it shows.
"""

import base64
import hashlib
import importlib.resources
import io
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.path import Path as Polyline
from PIL import Image

from mtl_jax import files, metrics, tasks
from mtl_jax.data import geometry
from mtl_jax.inference.outlines import Marks
from mtl_jax.reporting.drawing import overlay

# Long side of a photograph on the page, and largest error of an outline, in pixels.
_LONG_SIDE, _TOLERANCE = 256, 0.2
_WEBP_QUALITY = 80

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__name__, ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)
_TEMPLATES.policies["json.dumps_kwargs"] = {
    "allow_nan": False,
    "separators": (",", ":"),
}


class Photograph(NamedTuple):
    """A test image and its annotations.

    Attributes:
      image_id: any text.
      pixels: uint8 [H, W, 3] RGB.
      glaucoma: 1 or 0; None where it is not annotated.
      truth: the annotated marks.
    """

    image_id: str
    pixels: np.ndarray
    glaucoma: int | None
    truth: Marks


class Reading(NamedTuple):
    """What one run predicts for one photograph.

    Attributes:
      marks: the predicted marks.
      numbers: numbers by metric. One that could not be computed is None or absent. The
        page shows the metrics of `metrics.at("page")`, and compares `diagnosis`, or
        else the probability with 0.5, with the annotated one.
    """

    marks: Marks
    numbers: Mapping[str, float | None]


class Table(NamedTuple):
    """A table of text. The page escapes it, except for text that is `Markup`.

    Attributes:
      heads: one for each column.
      rows: the cells of each row. The first cell is the head of its row.
      note: a sentence below the table; may be empty.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Content(NamedTuple):
    """Everything that a page shows.

    Attributes:
      title: title of the page.
      facts: name to text, shown below the title.
      tables: tables by heading.
      figures: PNG files by heading.
      photographs: photographs in any order.
      readings: for each run, by its label, one reading per photograph in the same
        order; None for a photograph that the run was not applied to. There is at least
        one run, and the page opens with the first two.
    """

    title: str
    facts: Mapping[str, str]
    tables: Mapping[str, Table]
    figures: Mapping[str, pathlib.Path]
    photographs: Sequence[Photograph]
    readings: Mapping[str, Sequence[Reading | None]]


def write(path: pathlib.Path, content: Content) -> None:
    """Writes the page as one HTML file, whole or not at all; see `render`."""
    files.write_text(path, render(content))


def render(content: Content) -> str:
    """Renders the page as HTML.

    Raises:
      ValueError: the number of readings of a run is not the number of photographs, or
        a number is not finite.
      OSError: a figure cannot be read.
    """
    script = (importlib.resources.files(__name__) / "page.js").read_text("utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return _TEMPLATES.get_template("page.html").render(
        title=content.title,
        facts=content.facts,
        tables=content.tables,
        figures={name: _figure(path) for name, path in content.figures.items()},
        masks=tasks.of_kind("segmentation"),
        points=tasks.of_kind("localisation"),
        names_of=_names_of,
        annotated_colour=overlay.TRUTH_COLOUR,
        data=_data(content),
        script=Markup(script),  # noqa: S704  Our own page.js.
        script_digest=base64.b64encode(digest).decode(),
    )


def _names_of(shown: Sequence[tasks.Task]) -> str:
    *names, last = (task.name for task in shown)
    return f"{', '.join(names)} and {last}" if names else last


def _figure(path: pathlib.Path) -> dict[str, Any]:
    png = path.read_bytes()
    width, height = Image.open(io.BytesIO(png)).size
    return {"source": _data_uri("png", png), "is_wide": width > 2 * height}


def _data(content: Content) -> dict[str, Any]:
    """Makes the data that `page.js` reads; that file describes them."""
    sizes = [photograph.pixels.shape[:2] for photograph in content.photographs]
    return {
        "tasks": {
            kind: [task.name for task in tasks.of_kind(kind)]
            for kind in get_args(tasks.Kind)
        },
        "metrics": [
            {
                "key": name,
                "name": metric.label,
                "meaning": metric.meaning,
                "better": metric.better,
                "digits": metric.digits,
            }
            for name, metric in metrics.at("page").items()
        ],
        "photographs": [_photograph_data(each) for each in content.photographs],
        "runs": [
            {
                "label": label,
                "readings": [
                    reading and _reading_data(reading, size)
                    for reading, size in zip(readings, sizes, strict=True)
                ],
            }
            for label, readings in content.readings.items()
        ],
    }


def _photograph_data(photograph: Photograph) -> dict[str, Any]:
    native_size = photograph.pixels.shape[:2]
    height, width = size = _reduced(native_size)
    webp = io.BytesIO()
    pixels = geometry.resize_photograph(photograph.pixels, size)
    Image.fromarray(pixels).save(webp, "WEBP", quality=_WEBP_QUALITY)
    return {
        "id": photograph.image_id,
        "glaucoma": photograph.glaucoma,
        "height": height,
        "width": width,
        "source": _data_uri("webp", webp.getvalue()),
        "marks": _marks_data(photograph.truth, native_size),
    }


def _reading_data(reading: Reading, native_size: tuple[int, int]) -> dict[str, Any]:
    return {
        "marks": _marks_data(reading.marks, native_size),
        # Unrounded: rounding could carry a number across 0.5, or make two equal.
        "numbers": [reading.numbers.get(key) for key in metrics.at("page")],
        "diagnosis": reading.numbers.get("diagnosis"),
    }


def _marks_data(marks: Marks, native_size: tuple[int, int]) -> dict[str, Any]:
    def on_page(xy: np.ndarray) -> np.ndarray:
        return geometry.rescale_xy(xy, native_size, _reduced(native_size))

    def outline(lines: Sequence[np.ndarray] | None) -> str:
        return "".join(_path(on_page(line)) for line in lines or ())

    def point(xy: np.ndarray | None) -> list[float] | None:
        return None if xy is None else on_page(xy).round(2).tolist()

    draw: dict[tasks.Kind, Callable[[Any], str | list[float] | None]]
    draw = {"segmentation": outline, "localisation": point}
    return {
        task.name: draw[task.kind](marks.get(task.name))
        for task in tasks.TASKS.values()
        if task.kind in draw
    }


def _path(outline: np.ndarray) -> str:
    """Writes a closed outline [n, 2] as an SVG path of fewer points, to 0.1 pixels."""
    line = Polyline(np.concatenate([outline, outline[:1]]))
    line.simplify_threshold = _TOLERANCE
    # The last vertex is matplotlib's mark for the end of the path.
    points = np.asarray(line.cleaned(simplify=True).vertices)[:-1]
    # Rounding the points, not the steps between them, keeps errors from adding up.
    tenths = np.rint(10 * points).astype(int)
    steps = np.diff(tenths, axis=0)
    steps = steps[steps.any(axis=1)]
    # SVG allows no "l" without a step after it.
    text = f"M{_numbers(tenths[0])}" + (f"l{_numbers(steps)}" if len(steps) else "")
    return f"{text}z"


def _numbers(tenths: np.ndarray) -> str:
    text = " ".join(f"{number / 10:g}" for number in tenths.ravel())
    return re.sub(r"\b0\.", ".", text).replace(" -", "-")


def _reduced(native_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) on the page of a photograph of this (height, width)."""
    scale = min(1, _LONG_SIDE / max(native_size))
    height, width = (max(1, round(side * scale)) for side in native_size)
    return height, width


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
