"""Writes predictions on photographs: a table, masks at native size, overlays."""

import collections
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mtl_jax import files, metrics, tasks, workdirs
from mtl_jax.data import images
from mtl_jax.errors import UserError
from mtl_jax.evaluation.predict import Predicted, attempt, judge, predict
from mtl_jax.inference import averaging, postprocess, quality
from mtl_jax.inference.prediction import IN_GREY_MASK, grey_mask
from mtl_jax.reporting import submission
from mtl_jax.reporting.drawing import overlay

Form = Literal["table", "refuge"]


class Written(NamedTuple):
    """What is to be said of photographs that were predicted on.

    Attributes:
      failures: one sentence for every photograph that could not be read.
      notes: one sentence for every kind of conversion, with the number of photographs,
        one if the calibration of the network is not used, and one if the quality of
        photographs is doubtful.
    """

    failures: list[str]
    notes: list[str]


def write(
    workdir: pathlib.Path | Sequence[pathlib.Path],
    photographs: str,
    output: pathlib.Path,
    *,
    checkpoint: str = "best",
    tta: bool | None = None,
    calibrated: bool = True,
    form: Form = "table",
) -> Written:
    """Predicts on photographs of any size, and writes the results.

    A table is `predictions.csv` with `columns()`. Coordinates, heights and areas are in
    the photograph's own pixels, and empty where the network has no such task. The
    spread is that of the members of an average, see `averaging.spread`. The column
    `quality` has the doubts about a photograph, see `inference.quality`; where it is
    not a fundus, nothing that was predicted is in the table. Beside the table
    are `masks/NAME.png` with REFUGE's grey values, `TASK_masks/NAME.png` (255 inside)
    for each mask that these do not show, and `overlays/NAME.png`. For the form `refuge`
    see `submission`. What is written of a photograph is there as soon as it is made,
    and stays, however the process ends; its row comes last. A photograph that cannot be
    read is left out, and standard error says why. Where several have
    one stem, or one that makes no sound name, `image` has a number or is escaped.

    Args:
      workdir: folder of the run, or those of several runs that are averaged.
      photographs: a directory, a file, or a glob pattern.
      output: the folder to write; an earlier output there is replaced by the first
        photograph, if nobody has added or changed a file.
      checkpoint: `best`, `latest` or a step.
      tta: whether to average over flips; None if the calibration was fitted so.
      calibrated: whether to use the calibration of the first workdir, if it has one.
      form: format of the output, `table` or `refuge`.

    Returns:
      What is to be said of photographs that were converted, are of doubtful quality or
      could not be read.

    Raises:
      UserError: if there are no photographs, or none of them can be read, or the
        checkpoint cannot be read, or the output holds something else.
    """
    paths = images.find_photographs(photographs)
    folders = workdirs.as_folders(workdir)
    failures: list[str] = []
    conversions = collections.Counter[str]()
    doubtful: list[bool] = []
    with files.growing_directory(output, [*paths, *folders]) as folder:
        if calibrated:
            network = workdirs.load_calibrated(folders, checkpoint, tta=tta)
        else:
            network = workdirs.load_averaged(folders, checkpoint, tta=bool(tta))
        if form == "refuge":
            submission.check_tasks(network.config.tasks)
        for one in predict(network, paths, failures, conversions):
            if form == "refuge":
                attempt(
                    failures,
                    one.path,
                    submission.write_one,
                    folder,
                    one.name,
                    one.prediction,
                )
            else:
                attempt(failures, one.path, _write_one, folder, one, doubtful)
        if len(failures) == len(paths):
            raise UserError(
                f"No photograph could be read ({len(paths)} of {len(paths)} were "
                "skipped, for the reasons above); name others."
            )
    conversion = images.conversion_sentences(conversions)
    calibration = [network.note] * bool(network.note)
    return Written(failures, [*conversion, *calibration, *_doubts(doubtful)])


def columns() -> tuple[str, ...]:
    """Returns the columns of `predictions.csv`."""
    masks = [task.name for task in tasks.of_kind("segmentation")]
    return (
        "image",
        "file",
        "quality",
        metrics.DIAGNOSIS,
        "probability",
        "probability_fc",
        "probability_vcdr",
        *(metrics.probability_of(task) for task in _other_classes()),
        "vcdr",
        *(f"{t.name}_{axis}" for t in tasks.of_kind("localisation") for axis in "xy"),
        *averaging.spread_columns(),
        *(f"{name}_height" for name in masks),
        *(f"{name}_area" for name in masks),
        "width",
        "height",
        "mask",
        *(f"{name}_mask" for name in _other_masks()),
        "overlay",
    )


def _other_classes() -> list[tasks.Task]:
    """Lists the classifications other than the diagnosis."""
    classes = tasks.of_kind("classification")
    return [task for task in classes if task.name != metrics.DIAGNOSIS]


def _other_masks() -> list[str]:
    """Names the segmentations that the grey mask does not show."""
    names = (task.name for task in tasks.of_kind("segmentation"))
    return [name for name in names if name not in IN_GREY_MASK]


def _write_one(
    folder: files.Growing, predicted: Predicted, doubtful: list[bool]
) -> None:
    """Writes the pictures and the row of a photograph; notes if it is doubtful."""
    row, pictures = _describe(predicted)
    for name, pixels in pictures.items():
        folder.write(name, submission.encode(pixels, "PNG"))
    folder.add_row("predictions.csv", columns(), row)
    doubtful.append(bool(row["quality"]))


def _doubts(doubtful: list[bool]) -> list[str]:
    """Says how many photographs are of doubtful quality; nothing if none is."""
    if not any(doubtful):
        return []
    count = len(doubtful)
    noun = "photograph" if count == 1 else "photographs"
    verb = "is" if sum(doubtful) == 1 else "are"
    return [
        f"{sum(doubtful)} of {count} {noun} {verb} of doubtful quality, see the column "
        "quality."
    ]


def _describe(predicted: Predicted) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Makes the row of one photograph, and its pictures by their path."""
    prediction, doubts = judge(predicted.photograph, predicted.prediction)
    predicted = predicted._replace(prediction=prediction)
    row, masks = describe(predicted, doubts)
    name, pictures = predicted.name, {}
    for column, pixels in masks.items():
        place = "masks" if column == "mask" else f"{column}s"
        row[column] = f"{place}/{name}.png"
        pictures[row[column]] = pixels
    caption = name
    if prediction.probability is not None:
        caption += f", P({metrics.DIAGNOSIS}) {prediction.probability:.2f}"
    if prediction.vcdr is not None:
        caption += f", vCDR {prediction.vcdr:.2f}"
    caption = ", ".join([caption, *(doubt.name for doubt in doubts)])
    row["overlay"] = f"overlays/{name}.png"
    pictures[row["overlay"]] = overlay.draw(
        predicted.photograph, prediction.found, {}, caption
    )
    return row, pictures


def describe(
    predicted: Predicted, doubts: Sequence[quality.Doubt]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Makes the row of a photograph, and its masks by the column of their path.

    Args:
      predicted: the photograph with the prediction that `judge` returned.
      doubts: the doubts that `judge` returned.
    """
    name, path, photograph, prediction = predicted
    row: dict[str, Any] = {
        "image": name,
        "file": str(path),
        "quality": "; ".join(map(str, doubts)),
        "height": photograph.shape[0],
        "width": photograph.shape[1],
        "probability": prediction.probability,
        "probability_fc": prediction.probability_fc,
        "probability_vcdr": prediction.probability_vcdr,
        "vcdr": prediction.vcdr,
        **prediction.spread,
    }
    if prediction.diagnosis is not None:
        row[metrics.DIAGNOSIS] = int(prediction.diagnosis)
    for task in _other_classes():
        row[metrics.probability_of(task)] = prediction.found.get(task.name)
    for task in tasks.of_kind("localisation"):
        point = prediction.found.get(task.name)
        if point is not None:
            for axis, value in zip("xy", point, strict=True):
                row[f"{task.name}_{axis}"] = round(value, 2)
    for task in tasks.of_kind("segmentation"):
        if task.name in prediction.found:
            mask = prediction.found[task.name]
            row[f"{task.name}_height"] = postprocess.mask_height(mask)
            row[f"{task.name}_area"] = int((mask > 0).sum())
    masks = {
        f"{part}_mask": 255 * prediction.found[part]
        for part in _other_masks()
        if part in prediction.found
    }
    grey = grey_mask(prediction)
    return row, masks if grey is None else {"mask": grey, **masks}
