"""Makes a report that people send on: a cover with a table, and a page a photograph.

It is made of the table and the pictures that a prediction has written, page by page, so
that any number of photographs takes the same memory. `handout.html` is the template of
the form that browsers show, and print as A4; `pdf` writes the other.
"""

import base64
import io
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jinja2
from PIL import Image

from mtl_jax import files, metrics, tasks, workdirs
from mtl_jax.data import images
from mtl_jax.errors import UserError
from mtl_jax.inference.calibration import Calibration
from mtl_jax.reporting import summary
from mtl_jax.reporting.handout import pages

Form = Literal["pdf", "html"]

NOTICE = (
    "For research only. This is no medical device: nobody may be diagnosed, treated or "
    "sent home by what it says."
)
# Of docs/model_card.md.
BUILT_IN_LIMITS = (
    "The network in the package was trained on a few hundred photographs, 50 of which "
    "have a diagnosis.",
    "Cups are right for the camera that it learnt them from, and too large for others.",
    "What it says of another population or camera has not been tested.",
)
_LIMITS = (
    "The network knows the photographs that it was trained on. What it says of other "
    "cameras and populations has to be tested on annotated photographs of them.",
)
# Long side of a photograph on a page, in pixels.
_SIDE, _QUALITY = 900, 88

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__name__, ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


class Page(NamedTuple):
    """What is said of a photograph.

    Attributes:
      name: its name in the table.
      file: path of its file.
      decision: the diagnosis in words.
      numbers: name and value of each number.
      doubts: doubts about its quality; may be empty.
      photograph: JPEG; None if its file cannot be read any more.
      overlay: JPEG.
    """

    name: str
    file: str
    decision: str
    numbers: Sequence[tuple[str, str]]
    doubts: Sequence[str]
    photograph: bytes | None
    overlay: bytes


class Content(NamedTuple):
    """What a report says.

    Attributes:
      facts: name and text of what holds for all photographs.
      calibration: a sentence.
      limits: sentences.
      heads: heads of the table on the cover.
      rows: makes its rows; it may be called repeatedly.
      pages: makes the pages.
    """

    facts: Sequence[tuple[str, str]]
    calibration: str
    limits: Sequence[str]
    heads: Sequence[str]
    rows: Callable[[], Iterator[Sequence[str]]]
    pages: Callable[[], Iterator[Page]]


def content(
    folder: pathlib.Path,
    table: pathlib.Path,
    photographs: Mapping[str, pathlib.Path],
    summed: Mapping[str, Any],
    network: workdirs.TrainedNetwork,
    is_built_in: bool,
) -> Content:
    """Describes the report of a prediction.

    Args:
      folder: folder of the prediction, with overlays.
      table: its table.
      photographs: paths of the photographs by their name in the table.
      summed: summary of the table.
      network: the network.
      is_built_in: whether it is the network in the package.
    """
    return Content(
        facts=summary.counts(summed),
        calibration=_calibration(network.calibration),
        limits=BUILT_IN_LIMITS if is_built_in else _LIMITS,
        heads=("photograph", "decision", f"P({metrics.DIAGNOSIS})", "vCDR", "quality"),
        rows=lambda: map(_row, summary.rows(table)),
        pages=lambda: (
            _page(folder, row, photographs[row["image"]]) for row in summary.rows(table)
        ),
    )


def write(form: Form, of: Content, path: pathlib.Path) -> None:
    """Writes a report, page by page."""
    (_write_html if form == "html" else pages.write)(of, NOTICE, path)


def _write_html(of: Content, notice: str, path: pathlib.Path) -> None:
    template = _TEMPLATES.get_template("handout.html")
    with path.open("w", encoding="utf-8") as file:
        file.writelines(template.generate(of=of, notice=notice, data_uri=_data_uri))


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _calibration(found: Calibration | None) -> str:
    if found is None:
        return (
            f"The probabilities are not calibrated. From 0.5 on, the decision is "
            f"{metrics.DIAGNOSIS}."
        )
    return (
        f"The probabilities are calibrated on {found.num_images} photographs, "
        f"{found.num_glaucoma} with glaucoma. From {found.threshold:.2f} on, the "
        f"decision is {metrics.DIAGNOSIS}; on these photographs, that had a "
        f"sensitivity of {found.sensitivity:.2f} and a specificity of "
        f"{found.specificity:.2f}."
    )


def _row(row: Mapping[str, str]) -> Sequence[str]:
    return (
        row["image"],
        summary.DECISIONS[row[metrics.DIAGNOSIS]],
        _rounded(row["probability"]),
        _rounded(row["vcdr"]),
        ", ".join(summary.doubts(row["quality"])) or summary.GOOD,
    )


def _rounded(cell: str, spread: str = "") -> str:
    if not cell:
        return "–"
    return f"{float(cell):.2f}" + (f" ± {float(spread):.2f}" if spread else "")


def _page(
    folder: pathlib.Path, row: Mapping[str, str], photograph: pathlib.Path
) -> Page:
    overlay = files.inside(folder, row["overlay"])
    if not overlay.is_file():
        raise UserError(
            f"{overlay} is missing, and the report shows it; leave out --resume to "
            "make it again, or leave out --report."
        )
    numbers = [
        (
            f"P({metrics.DIAGNOSIS})",
            _rounded(row["probability"], row["probability_spread"]),
        ),
        ("– of the classifier", _rounded(row["probability_fc"])),
        ("– of the cup-to-disc ratio", _rounded(row["probability_vcdr"])),
        ("vertical cup-to-disc ratio", _rounded(row["vcdr"], row["vcdr_spread"])),
    ]
    for task in tasks.of_kind("segmentation"):
        if height := row[f"{task.name}_height"]:
            text = f"{height} high, {int(row[f'{task.name}_area']):,} in area"
            numbers.append((f"{task.name} [pixels]", text))
    for task in tasks.of_kind("localisation"):
        if row[f"{task.name}_x"]:
            at = (float(row[f"{task.name}_{axis}"]) for axis in "xy")
            text = "x {:.0f}, y {:.0f}".format(*at)
            numbers.append((f"{task.name} [pixels]", text))
    numbers.append(("size [pixels]", f"{row['width']} × {row['height']}"))
    return Page(
        name=row["image"],
        file=row["file"],
        decision=summary.DECISIONS[row[metrics.DIAGNOSIS]],
        numbers=numbers,
        doubts=summary.reasons(row["quality"]),
        photograph=_reduced(photograph),
        overlay=overlay.read_bytes(),
    )


def _reduced(path: pathlib.Path) -> bytes | None:
    """Encodes a photograph in the size of a page; None if it cannot be read."""
    try:
        picture = images.open_photograph(path).picture
    except UserError:
        return None
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=_QUALITY)
    return jpeg.getvalue()
