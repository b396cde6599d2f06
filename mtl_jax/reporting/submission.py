"""Writes results as the REFUGE challenge's evaluation program reads them.

A submission is a folder with `segmentation/NAME.bmp` (the photograph's size; 0 cup, 128
rim, 255 elsewhere), `classification_results.csv` and `fovea_location_results.csv`. The
program reads pixels below 255 as disc, and pixels of 0 as cup. Cup outside the disc
therefore counts as disc. An image without disc and cup has the ratio 0. The Dice of two
empty masks is NaN, but all of the challenge's photographs have a disc.

Reference:
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020.
"""

import io
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.inference.prediction import IN_GREY_MASK, Prediction, grey_mask
from mtl_jax.metrics import DIAGNOSIS

_POINT = "fovea"
_TASKS = (DIAGNOSIS, *IN_GREY_MASK, _POINT)
_RISKS = ("FileName", "Glaucoma Risk")
_POINTS = ("ImageName", "Fovea_X", "Fovea_Y")


def check_tasks(names: Iterable[str]) -> None:
    """Refuses a network that cannot fill a submission.

    Args:
      names: names of the network's tasks.

    Raises:
      UserError: if it lacks a task. The message names the missing tasks.
    """
    missing = [name for name in _TASKS if name not in names]
    if missing:
        raise UserError(
            f"A REFUGE submission needs all four tasks, and this network lacks "
            f"{', '.join(missing)}; use a network that was trained for them."
        )


def write(folder: files.Growing, predictions: Iterable[tuple[str, Prediction]]) -> None:
    """Writes a submission.

    Args:
      folder: an empty folder.
      predictions: file name and prediction of each photograph, at its own size and with
        all four tasks. The tables give every name the extension `.jpg`, like those of
        the challenge's photographs.

    Raises:
      UserError: if the names of two photographs differ only in their extensions.
    """
    named = {}
    for file_name, prediction in predictions:
        stem = pathlib.PurePath(file_name).stem
        if stem in named:
            raise UserError(
                f"{named[stem]} and {file_name} would both be {stem}.bmp in a "
                "submission; rename one of the photographs."
            )
        named[stem] = file_name
        folder.add(part(stem, prediction))


def part(stem: str, prediction: Prediction) -> files.Part:
    """Makes one photograph's part of a submission; see `write`."""
    mask = grey_mask(prediction)
    assert mask is not None, "the network has disc and cup, see check_tasks"
    image = f"{stem}.jpg"
    risk = dict(zip(_RISKS, (image, prediction.probability), strict=True))
    point = prediction.point(_POINT)
    assert point is not None, "the network has foveas, see check_tasks"
    fovea = dict(zip(_POINTS, (image, *map(float, point)), strict=True))
    return files.Part(
        {f"segmentation/{stem}.bmp": encode(mask, "BMP")},
        {
            "classification_results.csv": (_RISKS, risk),
            "fovea_location_results.csv": (_POINTS, fovea),
        },
    )


def encode(pixels: np.ndarray, form: str, **options: Any) -> bytes:
    """Encodes an image as a file of a form, and with options, that Pillow names."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form, **options)
    return content.getvalue()
