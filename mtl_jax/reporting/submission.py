"""Results as the REFUGE challenge's evaluation program reads them.

A folder with `segmentation/NAME.bmp` (the photograph's size; 0 cup, 128 rim, 255
elsewhere), `classification_results.csv` and `fovea_location_results.csv`. That program
reads the masks so: what is darker than 255 is disc, what is 0 is cup, so that cup
outside the disc counts as disc; the ratio of an image without disc and cup is 0; a Dice
of two empty masks is not a number there (the challenge's photographs all have a disc).

Reference:
  Orlando et al., REFUGE Challenge, Medical Image Analysis 59:101570, 2020.
"""

import csv
import pathlib
from collections.abc import Iterable

from PIL import Image

from mtl_jax.errors import UserError
from mtl_jax.inference.prediction import IN_GREY_MASK, Prediction, grey_mask
from mtl_jax.metrics import DIAGNOSIS

_POINT = "fovea"
_TASKS = (DIAGNOSIS, *IN_GREY_MASK, _POINT)
CONTENTS = (
    "segmentation/*.bmp",
    "classification_results.csv",
    "fovea_location_results.csv",
)


def check_tasks(names: Iterable[str]) -> None:
    """Refuses a network that cannot fill a submission.

    Args:
      names: of the network's tasks.

    Raises:
      UserError: naming what it lacks.
    """
    missing = [name for name in _TASKS if name not in names]
    if missing:
        raise UserError(
            f"A REFUGE submission needs all four tasks, and this network lacks "
            f"{', '.join(missing)}; use a network that was trained for them."
        )


def write(folder: pathlib.Path, predictions: Iterable[tuple[str, Prediction]]) -> None:
    """Writes a submission.

    Args:
      folder: an empty one.
      predictions: of each photograph at its own size, with the name of its file; all
        four tasks are needed. The challenge's photographs are JPEG files, and so the
        tables name them, whatever the extension here.

    Raises:
      UserError: if two photographs have one name but for their extensions.
    """
    (folder / "segmentation").mkdir()
    risks, foveas = [], []
    named = {}
    for file_name, prediction in predictions:
        stem = pathlib.PurePath(file_name).stem
        if stem in named:
            raise UserError(
                f"{named[stem]} and {file_name} would both be {stem}.bmp in a "
                "submission; rename one of the photographs."
            )
        named[stem] = file_name
        mask = Image.fromarray(grey_mask(prediction))
        mask.save(folder / "segmentation" / f"{stem}.bmp")
        risks.append((f"{stem}.jpg", prediction.probability))
        foveas.append((f"{stem}.jpg", *map(float, prediction.found[_POINT])))
    for name, header, rows in (
        ("classification_results", ("FileName", "Glaucoma Risk"), risks),
        ("fovea_location_results", ("ImageName", "Fovea_X", "Fovea_Y"), foveas),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
