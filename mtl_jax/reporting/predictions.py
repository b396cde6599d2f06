"""Writes predictions on photographs: a table, masks at native size, overlays."""

import csv
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from PIL import Image

from mtl_jax import files, workdirs
from mtl_jax.data import images
from mtl_jax.errors import UserError
from mtl_jax.evaluation.predict import Predicted, predict
from mtl_jax.inference import postprocess
from mtl_jax.inference.prediction import Prediction, grey_mask
from mtl_jax.reporting import submission
from mtl_jax.reporting.pictures import draw_prediction

CONTENTS = ("predictions.csv", "masks/*.png", "overlays/*.png")

COLUMNS = (
    "image",
    "file",
    "glaucoma",
    "probability",
    "probability_fc",
    "probability_vcdr",
    "vcdr",
    "fovea_x",
    "fovea_y",
    "disc_height",
    "cup_height",
    "disc_area",
    "cup_area",
    "width",
    "height",
    "mask",
    "overlay",
)

Form = Literal["table", "refuge"]


def write(
    workdir: pathlib.Path,
    photographs: str,
    output: pathlib.Path,
    *,
    checkpoint: str = "best",
    form: Form = "table",
) -> list[str]:
    """Predicts on photographs of any size, and writes the results.

    Writes into `output`, as a table: `predictions.csv` with `COLUMNS` (coordinates,
    heights and areas in the photograph's own pixels; empty where the network has no
    such task), `masks/NAME.png` with REFUGE's grey values, and `overlays/NAME.png`. Or
    a REFUGE submission, see `submission`. A photograph that cannot be read is left out.

    Args:
      workdir: folder of the run.
      photographs: a directory, a file, or a glob pattern.
      output: the folder to write; an earlier prediction there is replaced.
      checkpoint: `best`, `latest` or a step.
      form: format of the output, `table` or `refuge`.

    Returns:
      One sentence for every photograph that could not be read.

    Raises:
      UserError: if there are no photographs, or none of them can be read, or the
        checkpoint cannot be read.
    """
    paths = images.find_photographs(photographs)
    network = workdirs.load(workdir, checkpoint)
    if form == "refuge":
        submission.check_tasks(network.config.tasks)
    failures: list[str] = []
    contents = CONTENTS if form == "table" else submission.CONTENTS
    with files.whole_directory(output, contents) as folder:
        predicted = predict(network, paths, failures)
        if form == "refuge":
            # The names have no extension, and may have a dot all the same.
            submission.write(
                folder, ((f"{name}.jpg", p) for name, _, _, p in predicted)
            )
        else:
            _write_table(folder, predicted)
        if len(failures) == len(paths):
            raise UserError(f"No photograph could be read: {' '.join(failures)}")
    return failures


def _write_table(folder: pathlib.Path, predicted: Iterable[Predicted]) -> None:
    (folder / "masks").mkdir()
    (folder / "overlays").mkdir()
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for name, path, photograph, prediction in predicted:
            row = _write_row(folder, name, photograph, prediction)
            writer.writerow({**row, "file": path})


def _write_row(
    folder: pathlib.Path, name: str, photograph: np.ndarray, prediction: Prediction
) -> dict[str, Any]:
    """Writes the pictures of one photograph and returns its row."""
    row: dict[str, Any] = {
        "image": name,
        "height": photograph.shape[0],
        "width": photograph.shape[1],
        "glaucoma": None if prediction.glaucoma is None else int(prediction.glaucoma),
        "probability": prediction.probability,
        "probability_fc": prediction.probability_fc,
        "probability_vcdr": prediction.probability_vcdr,
        "vcdr": prediction.vcdr,
        "overlay": f"overlays/{name}.png",
    }
    if prediction.fovea_xy is not None:
        row["fovea_x"], row["fovea_y"] = (round(v, 2) for v in prediction.fovea_xy)
    for part in ("disc", "cup"):
        mask = getattr(prediction, part)
        if mask is not None:
            row[f"{part}_height"] = postprocess.mask_height(mask)
            row[f"{part}_area"] = int((mask > 0).sum())
    if prediction.disc is not None or prediction.cup is not None:
        row["mask"] = f"masks/{name}.png"
        Image.fromarray(grey_mask(prediction)).save(folder / row["mask"])
    caption = name
    if prediction.probability is not None:
        caption += f", P(glaucoma) {prediction.probability:.2f}"
    if prediction.vcdr is not None:
        caption += f", vCDR {prediction.vcdr:.2f}"
    picture = draw_prediction(photograph, prediction, caption)
    Image.fromarray(picture).save(folder / row["overlay"])
    return row
