"""An experiment's report as one page for the browser.

The page is a single file that is opened from disk and fetches nothing: photographs and
figures are in it, and the Content-Security-Policy it declares forbids everything else.
Every photograph is in it once; the outlines that each run found are paths drawn on it
by the browser, so that a few megabytes hold all runs of an experiment.
"""

import base64
import hashlib
import html
import importlib.resources
import io
import itertools
import json
import pathlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.path import Path as Polyline
from PIL import Image

from mtl_jax import files
from mtl_jax.data import geometry
from mtl_jax.drawing import overlay
from mtl_jax.drawing.outlines import Marks

# Pixels: the long side of a photograph, and how far an outline may be off.
_LONG_SIDE, _TOLERANCE = 256, 0.2
_WEBP_QUALITY = 80

# A table of more lines than this is opened by who wants to read it.
_LONG_TABLE = 20


class Metric(NamedTuple):
    """A number that a run gives a photograph.

    Attributes:
      name: for people.
      meaning: of the number, in a sentence.
      better: which values are, if any are.
      digits: after the point.
    """

    name: str
    meaning: str
    better: Literal["higher", "lower"] | None
    digits: int = 3


METRICS = {
    "probability": Metric(
        "P(glaucoma)", "Probability of glaucoma; from 0.5 on it is a diagnosis.", None
    ),
    "dice_disc": Metric(
        "disc Dice", "Overlap of the optic disc with the annotated one.", "higher"
    ),
    "dice_cup": Metric(
        "cup Dice", "Overlap of the optic cup with the annotated one.", "higher"
    ),
    "fovea_error": Metric(
        "fovea error, px",
        "Distance from the annotated fovea, in pixels of the model image.",
        "lower",
        2,
    ),
    "vcdr": Metric("vCDR", "Vertical cup-to-disc ratio that was predicted.", None),
    "vcdr_error": Metric(
        "vCDR error", "Distance of that ratio from the annotated one.", "lower"
    ),
}


class Photograph(NamedTuple):
    """A test image and its annotations.

    Attributes:
      image_id: any text.
      pixels: uint8 [H, W, 3] RGB.
      glaucoma: 1, 0, or None where it is not annotated.
      truth: what is annotated.
    """

    image_id: str
    pixels: np.ndarray
    glaucoma: int | None
    truth: Marks


class Reading(NamedTuple):
    """What one run said of one photograph.

    Attributes:
      marks: what it found.
      numbers: by key of `METRICS`; None, or no such key, where there is none. Other
        keys are not shown.
    """

    marks: Marks
    numbers: Mapping[str, float | None]


class Content(NamedTuple):
    """All of a page.

    Attributes:
      title: of the page.
      facts: shown below the title, name to text.
      tables: heading to an HTML <table>, and what is to be said of it; trusted.
      figures: heading to a PNG file.
      photographs: in any order.
      readings: label of a run to what it said of every photograph, in their order; None
        of those that it was not applied to. The first two runs are the ones shown when
        the page opens.
    """

    title: str
    facts: Mapping[str, str]
    tables: Mapping[str, str]
    figures: Mapping[str, pathlib.Path]
    photographs: Sequence[Photograph]
    readings: Mapping[str, Sequence[Reading | None]]


def write(path: pathlib.Path, content: Content) -> None:
    """Writes the page, at once or not at all.

    Args:
      path: of the HTML file.
      content: what is on it.

    Raises:
      ValueError: see `render`.
      OSError: a figure cannot be read, or the page not written.
    """
    files.write_text(path, render(content))


def render(content: Content) -> str:
    """The page as HTML.

    Raises:
      ValueError: there is no run, a run has more or fewer readings than there are
        photographs, a photograph is not uint8 [H, W, 3], or a number is not finite.
      OSError: a figure cannot be read.
    """
    _check(content)
    style, script, page = (_part(f"page.{kind}") for kind in ("css", "js", "html"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(_data(content), separators=(",", ":"), allow_nan=False)
    return string.Template(page).substitute(
        title=html.escape(content.title),
        script_digest=digest,
        style=_colours() + style,
        facts="".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>"
            for name, text in content.facts.items()
        ),
        tables=_section("Results", itertools.starmap(_table, content.tables.items())),
        figures=_section(
            "Figures", itertools.starmap(_figure, content.figures.items())
        ),
        # Nothing in a script ends it but "</script", whatever an image is called.
        data=data.replace("<", r"\u003c"),
        script=script,
    )


def _check(content: Content) -> None:
    if not content.readings:
        raise ValueError("there is no run to show")
    for label, readings in content.readings.items():
        if len(readings) != len(content.photographs):
            raise ValueError(
                f"{label} has {len(readings)} readings of "
                f"{len(content.photographs)} photographs"
            )
    for photograph in content.photographs:
        pixels = photograph.pixels
        if pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
            raise ValueError(
                f"{photograph.image_id} is not RGB bytes: {pixels.dtype} {pixels.shape}"
            )


def _part(name: str) -> str:
    return (importlib.resources.files(__name__) / name).read_text("utf-8")


def _colours() -> str:
    """The colours of every other picture of the project, as variables of the style."""
    colours = {
        "disc": overlay.DISC_COLOUR,
        "cup": overlay.CUP_COLOUR,
        "fovea": overlay.FOVEA_COLOUR,
        "annotated": overlay.TRUTH_COLOUR,
    }
    lines = [f"--{name}: rgb{colour};" for name, colour in colours.items()]
    return f":root {{ {' '.join(lines)} }}\n"


def _section(heading: str, parts: Iterable[str]) -> str:
    body = "".join(parts)
    if not body:
        return ""
    return f'<section class="{heading.lower()}"><h2>{heading}</h2>{body}</section>'


def _table(heading: str, table: str) -> str:
    heading = html.escape(heading)
    title = f"<h3>{heading}</h3>"
    # A wide table is scrolled, which takes focus where there is no mouse.
    region = (
        f'<div class="table" role="region" aria-label="{heading}" tabindex="0">'
        f"{table}</div>"
    )
    if table.count("<tr") <= _LONG_TABLE:
        return title + region
    return f"<details><summary>{title}</summary>{region}</details>"


def _figure(heading: str, path: pathlib.Path) -> str:
    heading = html.escape(heading)
    source = _data_uri("png", pathlib.Path(path).read_bytes())
    with Image.open(path) as image:
        width, height = image.size
    kind = ' class="wide"' if width > 2 * height else ""
    return (
        f'<figure{kind}><figcaption>{heading}</figcaption><img src="{source}" '
        f'alt="{heading}"></figure>'
    )


def _data(content: Content) -> dict[str, Any]:
    """What the page's script works on, see there."""
    sizes = [
        (p.pixels.shape[:2], _reduced(p.pixels.shape[:2])) for p in content.photographs
    ]
    return {
        "metrics": [{"key": key, **m._asdict()} for key, m in METRICS.items()],
        "photographs": [
            _photograph_data(photograph, *pair)
            for photograph, pair in zip(content.photographs, sizes, strict=True)
        ],
        "runs": [
            {
                "label": label,
                "readings": [
                    None if reading is None else _reading_data(reading, *pair)
                    for reading, pair in zip(readings, sizes, strict=True)
                ],
            }
            for label, readings in content.readings.items()
        ],
    }


def _photograph_data(
    photograph: Photograph, native_size: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    buffer = io.BytesIO()
    pixels = geometry.resize_photograph(photograph.pixels, size)
    Image.fromarray(pixels).save(buffer, "WEBP", quality=_WEBP_QUALITY)
    glaucoma = photograph.glaucoma
    return {
        "id": photograph.image_id,
        "glaucoma": None if glaucoma is None else int(glaucoma),
        "height": size[0],
        "width": size[1],
        "source": _data_uri("webp", buffer.getvalue()),
        "marks": _marks_data(photograph.truth, native_size, size),
    }


def _reading_data(
    reading: Reading, native_size: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    values = [reading.numbers.get(key) for key in METRICS]
    return {
        "marks": _marks_data(reading.marks, native_size, size),
        # In full: rounded ones could change sides of 0.5, or tie.
        "numbers": [None if value is None else float(value) for value in values],
    }


def _marks_data(
    marks: Marks, native_size: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    data: dict[str, Any] = {
        name: "".join(
            _path(geometry.rescale_xy(outline, native_size, size))
            for outline in getattr(marks, name)
        )
        for name in ("disc", "cup")
    }
    fovea = marks.fovea_xy
    if fovea is not None:
        fovea = geometry.rescale_xy(fovea, native_size, size).round(2).tolist()
    return {**data, "fovea": fovea}


def _path(outline: np.ndarray) -> str:
    """A closed outline [n, 2] as an SVG path: fewer points, in tenths of a pixel."""
    line = Polyline(np.concatenate([outline, outline[:1]]))
    line.simplify_threshold = _TOLERANCE
    # Matplotlib ends it by a vertex that says so.
    points = line.cleaned(simplify=True).vertices[:-1]
    # Rounded before the steps are taken, or errors would add up along the outline.
    tenths = np.rint(10 * points).astype(int)
    steps = np.diff(tenths, axis=0)
    steps = steps[steps.any(axis=1)]
    # A step has to follow where one is announced.
    text = f"M{_numbers(tenths[0])}" + (f"l{_numbers(steps)}" if len(steps) else "")
    return f"{text}z"


def _numbers(tenths: np.ndarray) -> str:
    text = " ".join(f"{number / 10:g}" for number in tenths.ravel())
    return re.sub(r"\b0\.", ".", text).replace(" -", "-")


def _reduced(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a photograph of `size` on the page."""
    scale = min(1, _LONG_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
