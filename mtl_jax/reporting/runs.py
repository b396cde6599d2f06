"""The runs of an experiment, and what each said of the test images."""

import csv
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data import geometry, pipeline
from mtl_jax.drawing.outlines import Marks, trace
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.experiments import plan, results
from mtl_jax.inference import scoring
from mtl_jax.reporting.page import Photograph, Reading
from mtl_jax.reporting.tables import NAMES

# Of `per_image.csv`, those that are read here.
_COLUMNS = {"glaucoma", "probability", "dice_disc", "dice_cup", "fovea_error", "vcdr"}


class Run(NamedTuple):
    """One run of an experiment, as `results.csv` tells it from the others.

    Attributes:
      fold: held out for validation, or `official`.
      seed: of the run.
      learning_rate: of the run.
      method: one of `plan.METHODS`.
    """

    fold: str
    seed: int
    learning_rate: float
    method: str

    def workdir(self, directory: pathlib.Path) -> pathlib.Path:
        """Its folder in the experiment's."""
        name = plan.run_name(self.method, self.fold, self.seed, self.learning_rate)
        return directory / "runs" / name


class ImageRow(NamedTuple):
    """What a run said of one test image, at model resolution.

    Attributes:
      image_id: of the image.
      numbers: by column of `per_image.csv`; None where that is empty.
    """

    image_id: str
    numbers: Mapping[str, float | None]


def of(rows: Sequence[results.Row]) -> list[Run]:
    """The runs that rows are of; methods of one fold and seed beside each other."""
    methods = list(NAMES)
    return sorted(
        {Run(r["fold"], r["seed"], r["learning_rate"], r["method"]) for r in rows},
        key=lambda run: (*run[:3], methods.index(run.method)),
    )


def labels(runs: Sequence[Run]) -> dict[Run, str]:
    """What to call each: its method, and what else tells it from the others."""
    parts = {
        "fold": lambda run: f"fold {run.fold}",
        "seed": lambda run: f"seed {run.seed}",
        "learning_rate": lambda run: f"learning rate {run.learning_rate:g}",
    }
    names = {run: NAMES[run.method] for run in runs}
    for field, text in parts.items():
        is_enough = len(set(names.values())) == len(names)
        if not is_enough and len({getattr(run, field) for run in runs}) > 1:
            names = {run: f"{name}, {text(run)}" for run, name in names.items()}
    return names


def image_rows(directory: pathlib.Path, run: Run) -> list[ImageRow]:
    """What a run said of every test image.

    Raises:
      UserError: if its evaluation cannot be read.
    """
    text = _read(directory, run, "per_image.csv")
    try:
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
        rows = [
            ImageRow(
                line.pop("image_id"),
                {k: float(v) if v else None for k, v in line.items()},
            )
            for line in lines
        ]
        for _, numbers in rows:
            values = (v for v in numbers.values() if v is not None)
            if not set(numbers) >= _COLUMNS or not all(map(math.isfinite, values)):
                raise ValueError("columns or numbers are missing")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(directory, run, error) from error
    return rows


def has_outlines(directory: pathlib.Path, run: Run) -> bool:
    """Whether the run was evaluated since outlines are written."""
    return (_evaluation(directory, run) / evaluate.OUTLINES).exists()


def photographs(table: pipeline.Table) -> list[Photograph]:
    """The images of a split and what is annotated."""
    found = []
    for index in range(len(table)):
        batch = table.take([index])
        truth = scoring.truth_of(batch, 0)
        marks = Marks(trace(truth["disc"]), trace(truth["cup"]), truth["fovea"])
        name = table.details(index)["image_id"]
        found.append(Photograph(name, batch["image"][0], truth["glaucoma"], marks))
    return found


def readings(
    directory: pathlib.Path, run: Run, table: pipeline.Table
) -> list[Reading | None]:
    """What a run said of a split's images, in their order; None of those it lacks.

    Raises:
      UserError: if its evaluation cannot be read.
    """
    rows = {row.image_id: row.numbers for row in image_rows(directory, run)}
    try:
        outlines = json.loads(_read(directory, run, evaluate.OUTLINES))
        side = table.take([0])["image"].shape[1:3]
        found = []
        for index in range(len(table)):
            details = table.details(index)
            name = details["image_id"]
            if name not in rows:
                found.append(None)
                continue
            numbers, traced = dict(rows[name]), outlines[name]
            disc, cup = (map(np.array, traced.get(k, [])) for k in ("disc", "cup"))
            point = numbers.get("fovea_x"), numbers.get("fovea_y")
            fovea_xy = None
            if None not in point:
                fovea_xy = geometry.rescale_xy(point, details["native_size"], side)
            ratios = numbers.get("vcdr"), numbers.get("vcdr_true")
            if None not in ratios:
                numbers["vcdr_error"] = abs(ratios[0] - ratios[1])
            found.append(Reading(Marks([*disc], [*cup], fovea_xy), numbers))
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(directory, run, error) from error
    return found


def scores(directory: pathlib.Path, run: Run) -> dict[int, float]:
    """Validation score by epoch; of several networks the mean of theirs."""
    found: dict[int, list[float]] = {}
    logs = sorted(run.workdir(directory).rglob("metrics.jsonl"))
    for log in logs:
        for line in map(json.loads, log.read_text().splitlines()):
            if (score := line.get("validation/score")) is not None:
                found.setdefault(line["epoch"], []).append(score)
    # An epoch that one of the networks has not reached has no mean.
    return {
        epoch: float(np.mean(values))
        for epoch, values in found.items()
        if len(values) == len(logs)
    }


def minutes_per_epoch(directory: pathlib.Path, run: Run) -> float:
    """Minutes that the steps of an epoch took; of several networks their sum.

    NaN where a log has no seconds, as that of a single step.
    """
    total = 0.0
    for log in run.workdir(directory).rglob("metrics.jsonl"):
        epochs = {}
        for line in map(json.loads, log.read_text().splitlines()):
            if (seconds := line.get("train/seconds_per_step")) is not None:
                epochs[line["epoch"]] = seconds, line["step"]
        if not epochs:
            return math.nan
        seconds = np.median([seconds for seconds, _ in epochs.values()])
        steps = max(step / epoch for epoch, (_, step) in epochs.items())
        total += float(seconds) * steps / 60
    return total


def _read(directory: pathlib.Path, run: Run, name: str) -> str:
    path = _evaluation(directory, run) / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); evaluate that run again by "
            f"scripts/evaluate.py --workdir={run.workdir(directory)}."
        ) from error


def _evaluation(directory: pathlib.Path, run: Run) -> pathlib.Path:
    return run.workdir(directory) / "evaluation" / "test-model"


def _damaged(directory: pathlib.Path, run: Run, error: Exception) -> UserError:
    return UserError(
        f"The evaluation of {run.workdir(directory)} is damaged "
        f"({type(error).__name__}: {error}); make it again by scripts/evaluate.py."
    )
