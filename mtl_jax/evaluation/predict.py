"""Prediction on photographs: a table, masks at native size, overlays."""

import csv
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tqdm
from PIL import Image

from mtl_jax import files, workdirs
from mtl_jax.data import geometry, images
from mtl_jax.errors import UserError
from mtl_jax.evaluation import submission
from mtl_jax.evaluation.pictures import draw_prediction
from mtl_jax.inference import postprocess
from mtl_jax.inference.prediction import Prediction, grey_mask, interpret

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

# Name, file, pixels.
_Photograph = tuple[str, pathlib.Path, np.ndarray]
_Predicted = tuple[str, pathlib.Path, np.ndarray, Prediction]

Form = Literal["table", "refuge"]


def predict(
    workdir: pathlib.Path,
    photographs: str,
    output: pathlib.Path,
    *,
    checkpoint: str = "best",
    form: Form = "table",
) -> list[str]:
    """Predicts on photographs of any size.

    Writes into `output`, as a table: `predictions.csv` with `COLUMNS` (coordinates,
    heights and areas in the photograph's own pixels; empty where the network has no
    such task), `masks/NAME.png` with REFUGE's grey values, and `overlays/NAME.png`. Or
    a REFUGE submission, see `submission`. A photograph that cannot be read is left out.

    Args:
      workdir: of the run.
      photographs: a directory, a file, or a glob pattern.
      output: the folder to write; an earlier prediction there is replaced.
      checkpoint: `best`, `latest` or a step.
      form: of the output, `table` or `refuge`.

    Returns:
      One sentence for every photograph that could not be read.

    Raises:
      UserError: if there are no photographs, none of them can be read, or the
        checkpoint cannot.
    """
    paths = images.find_photographs(photographs)
    network = workdirs.load(workdir, checkpoint)
    if form == "refuge":
        submission.check_tasks(network.config.tasks)
    failures: list[str] = []
    contents = CONTENTS if form == "table" else submission.CONTENTS
    with files.whole_directory(output, contents) as folder:
        predicted = _predictions(paths, network, failures)
        if form == "refuge":
            # Names without extension, in which a dot begins none either.
            submission.write(
                folder, ((f"{name}.jpg", p) for name, _, _, p in predicted)
            )
        else:
            _write_table(folder, predicted)
        if len(failures) == len(paths):
            raise UserError(f"No photograph could be read: {' '.join(failures)}")
    return failures


def _predictions(
    paths: Sequence[pathlib.Path],
    network: workdirs.TrainedNetwork,
    failures: list[str],
) -> Iterator[_Predicted]:
    """Names, files, photographs and predictions, with a progress bar."""
    names = _distinct_names(paths)
    progress = tqdm.tqdm(total=len(paths), desc="predicting", unit="image")
    with progress:
        for start in range(0, len(paths), network.batch_size):
            chunk = paths[start : start + network.batch_size]
            read: list[_Photograph] = []
            for path in chunk:
                try:
                    read.append((names[path], path, images.read_photograph(path)))
                except UserError as error:
                    failures.append(str(error))
                    progress.write(f"skipped: {error}", file=sys.stderr)
            if read:
                yield from _predict_batch(read, network)
            progress.update(len(chunk))


def _predict_batch(
    read: Sequence[_Photograph], network: workdirs.TrainedNetwork
) -> list[_Predicted]:
    size = (network.image_size, network.image_size)
    model_images = np.zeros((network.batch_size, *size, 3), np.uint8)
    for place, (*_, photograph) in enumerate(read):
        model_images[place] = geometry.resize_photograph(photograph, size)
    logits, _ = network({"image": model_images})
    return [
        (
            name,
            path,
            photograph,
            interpret(
                {task: values[place] for task, values in logits.items()},
                network.classifier,
                photograph.shape[:2],
                network.post,
            ),
        )
        for place, (name, path, photograph) in enumerate(read)
    ]


def _write_table(folder: pathlib.Path, predicted: Iterable[_Predicted]) -> None:
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


def _distinct_names(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """File stems, numbered where several photographs share one."""
    names: dict[pathlib.Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 2
        while name in taken:
            name, number = f"{path.stem}_{number}", number + 1
        taken.add(name)
        names[path] = name
    return names
