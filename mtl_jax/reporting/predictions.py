"""Writes predictions on photographs: a table, masks at native size, overlays."""

import contextlib
import functools
import importlib
import json
import pathlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mtl_jax import files, metrics, tasks, workdirs
from mtl_jax.data import images
from mtl_jax.errors import UserError
from mtl_jax.evaluation.predict import (
    Predicted,
    Tally,
    attempt,
    distinct_names,
    judge,
    predict,
)
from mtl_jax.inference import averaging, postprocess, quality
from mtl_jax.inference.prediction import IN_GREY_MASK, grey_mask
from mtl_jax.reporting import beginning, submission, summary
from mtl_jax.reporting.drawing import overlay
from mtl_jax.reporting.parquet import write as write_parquet

if TYPE_CHECKING:
    from mtl_jax.reporting import handout

Form = Literal["table", "refuge"]

# Thin coloured lines stay sharp: colours have the full resolution. PNG takes 40 times
# as long, and 4 times as much room.
_JPEG = {"quality": 90, "subsampling": 0}


TABLE, PARQUET, SUMMARY = "predictions.csv", "predictions.parquet", "summary.json"


class Written(NamedTuple):
    """What is to be said of photographs that were predicted on.

    Attributes:
      failures: one sentence for every photograph that could not be read.
      notes: one sentence for every kind of conversion, with the number of photographs,
        one if the calibration of the network is not used, one if the quality of
        photographs is doubtful, and one if photographs with rows have changed.
      summary: see `summary.summarise`; empty for a submission.
      waiting: share of the time in which the network waited, see `Tally.waiting`.
    """

    failures: list[str]
    notes: list[str]
    summary: dict[str, Any] = {}
    waiting: float | None = None


class Shard(NamedTuple):
    """A part of the photographs: the `number`th of `count`, counted from 1."""

    number: int
    count: int

    def of(self, names: Sequence[str]) -> Sequence[str]:
        """The names in this part. The parts of a list, one after the other, are it."""
        first, end = (
            k * len(names) // self.count for k in (self.number - 1, self.number)
        )
        return names[first:end]


WHOLE = Shard(1, 1)


def write(
    workdir: pathlib.Path | Sequence[pathlib.Path],
    photographs: str,
    output: pathlib.Path,
    *,
    checkpoint: str = "best",
    tta: bool | None = None,
    calibrated: bool = True,
    form: Form = "table",
    pictures: bool = True,
    masks: bool = True,
    parquet: bool = False,
    shard: Shard = WHOLE,
    resume: bool = False,
    report: "handout.Form | None" = None,
) -> Written:
    """Predicts on photographs of any size, and writes the results.

    A table is `predictions.csv` with `columns()`. Coordinates, heights and areas are in
    the photograph's own pixels, and empty where the network has no such task. The
    spread is that of the members of an average, see `averaging.spread`. The column
    `quality` has the doubts about a photograph, see `inference.quality`; where it is
    not a fundus, nothing that was predicted is in the table. Beside the table
    are `masks/NAME.png` with REFUGE's grey values, `TASK_masks/NAME.png` (255 inside)
    for each mask that these do not show, `overlays/NAME.jpg`, and `summary.json`. For
    the form `refuge` see `submission`. What is written of a photograph is there as soon
    as it is made, and stays, however the process ends; its row comes last. A photograph
    that cannot be read is left out, and standard error says why. Where several have
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
      pictures: whether to write overlays.
      masks: whether to write masks.
      parquet: whether to write the table as `predictions.parquet`, too.
      shard: which of the photographs to predict on. They are named as if all were.
      resume: whether an earlier output with a table stays, and only photographs that
        have no row there are predicted on.
      report: form of `report.pdf` or `report.html`, see `handout`; None for none.

    Returns:
      What is to be said of photographs that were converted, are of doubtful quality or
      could not be read, and the summary.

    Raises:
      UserError: if there are no photographs, or none of them can be read, or the
        checkpoint cannot be read, or the output holds something else; or if the earlier
        output has another network, other photographs or other flags.
    """
    output = files.resolved(output)
    paths = _others(output, images.find_photographs(photographs))
    named = _part(shard, paths)
    folders = workdirs.as_folders(workdir)
    continues = resume and beginning.exists(output)
    used, tally, summed, changed = [*paths, *folders], Tally(), {}, []
    _import_extras(form == "table" and pictures, parquet, report)
    with (
        files.growing_directory(output, used, continues=continues) as folder,
        _advising(folder, form),
    ):
        network = _load(folders, checkpoint, tta, calibrated)
        finish = functools.partial(_finish, pictures=pictures, masks=masks)
        if form == "refuge":
            submission.check_tasks(network.config.tasks)
            finish = _finish_submission
        flags = {"form": form, "pictures": pictures, "masks": masks}
        start, done = beginning.describe(network, named, flags), set[str]()
        if continues:
            begun = beginning.read(output, start)
            done = _done(folder, output)
            changed = [x for x in done if start.states[x] != begun.states[x]]
            start.states.update((name, begun.states[name]) for name in done)
        results = predict(network, named, finish, tally, done)
        _add_all(folder, start.content(), results, tally)
        if len(tally.failures) == len(named):
            raise UserError(
                f"No photograph could be read ({len(named)} of {len(named)} were "
                "skipped, for the reasons above); name others."
            )
        if form == "table" and (output / TABLE).is_file():
            summed = _sum_up(folder, output, tally, parquet)
            if report is not None:
                from mtl_jax.reporting import handout

                is_built_in = folders == [workdirs.BUILT_IN]
                made = handout.content(
                    output, output / TABLE, named, summed, network, is_built_in
                )
                folder.make(
                    f"report.{report}", functools.partial(handout.write, report, made)
                )
    notes = [*images.conversion_sentences(tally.conversions)]
    notes += [network.note] * bool(network.note) + _doubts(summed)
    notes += _changes([str(named[name]) for name in sorted(changed)])
    return Written(tally.failures, notes, summed, tally.waiting())


def _import_extras(pictures: bool, parquet: bool, report: str | None) -> None:
    """Imports what the ends need, so that a missing extra is named at the start."""
    wanted = {
        "matplotlib": pictures,
        "pyarrow": parquet,
        "mtl_jax.reporting.handout": report,
    }
    for module in filter(wanted.get, wanted):
        importlib.import_module(module)


@contextlib.contextmanager
def _advising(folder: files.Growing, form: Form) -> Iterator[None]:
    """Notes on an interruption whether --resume would go on from there."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if form == "table" and folder.has_begun:
            stop.add_note("continue with --resume")
        raise


def _add_all(
    folder: files.Growing,
    start: bytes,
    results: Generator[tuple[pathlib.Path, files.Part]],
    tally: Tally,
) -> None:
    """Writes what comes; before the first of it, how the prediction began."""
    with contextlib.closing(results):
        for number, (path, part) in enumerate(results):
            if number == 0:
                folder.write(beginning.NAME, start)
            attempt(tally.failures, path, folder.add, part)


def _others(
    output: pathlib.Path, paths: Sequence[pathlib.Path]
) -> Sequence[pathlib.Path]:
    """Leaves out what an earlier start wrote."""
    ours = files.written(output)
    others = [path for path in paths if files.resolved(path) not in ours]
    if not others:
        raise UserError(
            f"All {len(paths)} images were written into {output} by an earlier "
            "prediction; name photographs, or another output folder."
        )
    return others


def _part(shard: Shard, paths: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Names all photographs, and chooses those of a shard."""
    names = {name: path for path, name in distinct_names(paths).items()}
    part = {name: names[name] for name in shard.of([*names])}
    if not part:
        raise UserError(
            f"The shard {shard.number}/{shard.count} of {len(paths)} photographs is "
            "empty; ask for fewer shards."
        )
    return part


def _load(
    folders: Sequence[pathlib.Path], checkpoint: str, tta: bool | None, calibrated: bool
) -> workdirs.TrainedNetwork:
    if calibrated:
        return workdirs.load_calibrated(folders, checkpoint, tta=tta)
    return workdirs.load_averaged(folders, checkpoint, tta=bool(tta))


def _done(folder: files.Growing, output: pathlib.Path) -> set[str]:
    """Names the photographs that have a row already."""
    if not folder.reopen(TABLE):
        return set()
    return {row["image"] for row in summary.rows(output / TABLE)}


def _sum_up(
    folder: files.Growing, output: pathlib.Path, tally: Tally, parquet: bool
) -> dict[str, Any]:
    """Writes what is made of the whole table; returns its summary."""
    summed = summary.summarise(output / TABLE, tally.failures)
    folder.write(SUMMARY, (json.dumps(summed, indent=2) + "\n").encode())
    if parquet:
        folder.make(
            PARQUET, lambda path: write_parquet(output / TABLE, columns(), path)
        )
    return summed


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
        *(f"{name}_mask" for name in other_masks()),
        "overlay",
    )


def _other_classes() -> list[tasks.Task]:
    """Lists the classifications other than the diagnosis."""
    classes = tasks.of_kind("classification")
    return [task for task in classes if task.name != metrics.DIAGNOSIS]


def other_masks() -> list[str]:
    """Names the segmentations that the grey mask does not show."""
    names = (task.name for task in tasks.of_kind("segmentation"))
    return [name for name in names if name not in IN_GREY_MASK]


def _finish_submission(predicted: Predicted) -> files.Part:
    return submission.part(predicted.name, predicted.prediction)


def _changes(paths: Sequence[str]) -> list[str]:
    """Says which photographs a later start found changed; nothing if none is."""
    if not paths:
        return []
    noun = "photograph has" if len(paths) == 1 else "photographs have"
    return [
        f"{len(paths)} {noun} changed since the prediction began, and may have the row "
        f"of what was there before ({', '.join(paths[:3])}"
        f"{', ...' * (len(paths) > 3)}); predict on such into another folder."
    ]


def _doubts(summed: Mapping[str, Any]) -> list[str]:
    """Says how many photographs are of doubtful quality; nothing if none is."""
    count = summed.get("photographs", 0)
    doubtful = count - summed.get("quality", {}).get(summary.GOOD, 0)
    if not doubtful:
        return []
    noun = "photograph" if count == 1 else "photographs"
    verb = "is" if doubtful == 1 else "are"
    return [
        f"{doubtful} of {count} {noun} {verb} of doubtful quality, see the column "
        "quality."
    ]


def _finish(predicted: Predicted, *, pictures: bool, masks: bool) -> files.Part:
    """Makes the row of one photograph, and encodes its pictures."""
    prediction, doubts = judge(predicted.photograph, predicted.prediction)
    predicted = predicted._replace(prediction=prediction)
    row, found = describe(predicted, doubts)
    contents: dict[str, bytes] = {}
    if masks:
        for column, pixels in found.items():
            place = "masks" if column == "mask" else f"{column}s"
            row[column] = f"{place}/{predicted.name}.png"
            contents[row[column]] = submission.encode(pixels, "PNG")
    if pictures:
        row["overlay"] = f"overlays/{predicted.name}.jpg"
        drawn = _draw(predicted, doubts)
        contents[row["overlay"]] = submission.encode(drawn, "JPEG", **_JPEG)
    return files.Part(contents, {TABLE: (columns(), row)})


def _draw(predicted: Predicted, doubts: Sequence[quality.Doubt]) -> np.ndarray:
    """Draws what was found on a photograph, above its name and numbers."""
    caption, prediction = predicted.name, predicted.prediction
    if prediction.probability is not None:
        caption += f", P({metrics.DIAGNOSIS}) {prediction.probability:.2f}"
    if prediction.vcdr is not None:
        caption += f", vCDR {prediction.vcdr:.2f}"
    caption = ", ".join([caption, *(doubt.name for doubt in doubts)])
    return overlay.draw(predicted.photograph, prediction.found, {}, caption)


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
        for part in other_masks()
        if part in prediction.found
    }
    grey = grey_mask(prediction)
    return row, masks if grey is None else {"mask": grey, **masks}
