"""Reads the runs of an experiment, and what each predicts for the test images."""

import collections
import contextlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mtl_jax import files, metrics, tasks
from mtl_jax.data import geometry, pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.experiments import plan
from mtl_jax.inference import scoring
from mtl_jax.inference.outlines import marks_of
from mtl_jax.methods import METHODS
from mtl_jax.metrics import DIAGNOSIS
from mtl_jax.reporting.page import Photograph, Reading
from mtl_jax.training import metric_log

# The columns that are read from a training log.
_LOGGED = ["epoch", "step", "train/seconds_per_step", "validation/score"]


class RunKey(NamedTuple):
    """What distinguishes a run of an experiment from the others.

    Attributes:
      fold: number of the fold held out for validation, or `official`.
      seed: seed of the run.
      learning_rate: learning rate of the run.
      method: name from `methods.METHODS`.
    """

    fold: str
    seed: int
    learning_rate: float
    method: str

    def workdir(self, directory: pathlib.Path) -> pathlib.Path:
        """Returns the folder of the run in the folder of its experiment."""
        name = plan.run_name(self.method, self.fold, self.seed, self.learning_rate)
        return directory / "runs" / name


def of(rows: pd.DataFrame) -> list[RunKey]:
    """Lists the runs in rows of `results.csv`: fold by fold, seed by seed."""
    methods = list(METHODS)
    runs = rows[list(RunKey._fields)].drop_duplicates().itertuples(index=False)
    return sorted(
        itertools.starmap(RunKey, runs),
        key=lambda run: (*run[:3], methods.index(run.method)),
    )


def labels(runs: Sequence[RunKey]) -> dict[RunKey, str]:
    """Names each run by its method, and by further fields where runs share it."""
    parts = {
        "fold": lambda run: f"fold {run.fold}",
        "seed": lambda run: f"seed {run.seed}",
        "learning_rate": lambda run: f"learning rate {run.learning_rate:g}",
    }
    names = {run: METHODS[run.method].heading for run in runs}
    for field, text in parts.items():
        is_enough = len(set(names.values())) == len(names)
        if not is_enough and len({getattr(run, field) for run in runs}) > 1:
            names = {run: f"{name}, {text(run)}" for run, name in names.items()}
    return names


def image_numbers(directory: pathlib.Path, run: RunKey) -> pd.DataFrame:
    """Reads the numbers of a run for the test images, at model resolution.

    Returns:
      Floats, one row per image, indexed and sorted by `image_id`. The columns are those
      of `per_image.csv`, with NaN for an empty field, and `vcdr_error`, but for texts.

    Raises:
      UserError: if its evaluation cannot be read.
    """
    with _evaluation(directory, run) as folder:
        path = folder / "per_image.csv"
        header = map(str, pd.read_csv(path, nrows=0))
        texts = [*filter(_is_text, header)]
        numbers = pd.read_csv(
            path,
            index_col="image_id",
            dtype=collections.defaultdict(
                lambda: float, dict.fromkeys(["image_id", *texts], str)
            ),
            # An image may be called "NA".
            keep_default_na=False,
            na_values=[""],
        ).drop(columns=texts)
        numbers.index = numbers.index.map(files.text_of)
        numbers = numbers.sort_index()
        numbers["vcdr_error"] = (numbers["vcdr"] - numbers["vcdr_true"]).abs()
        shown = numbers.reindex(columns=[DIAGNOSIS, *metrics.at("page")])
        if np.isinf(shown).any(axis=None):
            raise ValueError("a number is infinite")
    return numbers


def trained_on(directory: pathlib.Path, run: RunKey) -> list[str]:
    """Reads which test images a run was trained on; none if it is not known.

    Raises:
      UserError: if its evaluation cannot be read.
    """
    with _evaluation(directory, run) as folder:
        found = files.parse_json((folder / "metrics.json").read_text("utf-8"))
        return found.get("trained_on", [])


def _is_text(column: str) -> bool:
    """Whether a column of `per_image.csv` may hold anything."""
    return column == "source" or column.startswith("manifest_")


def photographs(split: pipeline.Split) -> list[Photograph]:
    """Reads the images of a split and their annotations."""
    found = []
    for index in range(len(split)):
        batch = split.take([index])
        truth = scoring.truth_of(batch, 0)
        name = split.details(index)["image_id"]
        pixels, diagnosis = batch["image"][0], truth[DIAGNOSIS]
        found.append(Photograph(name, pixels, diagnosis, marks_of(truth)))
    return found


def readings(
    directory: pathlib.Path,
    run: RunKey,
    numbers: pd.DataFrame,
    split: pipeline.Split,
) -> list[Reading | None]:
    """Reads what a run predicts for the images of a split.

    Args:
      directory: folder of the experiment.
      run: one of its runs.
      numbers: the run's numbers, see `image_numbers`.
      split: the split that was evaluated.

    Returns:
      One reading per image, in the order of the split; None where the run lacks it.

    Raises:
      UserError: its evaluation cannot be read.
    """
    size = split.take([0])["image"].shape[1:3]
    by_image = {
        str(name): {str(key): number for key, number in row.items() if pd.notna(number)}
        for name, row in numbers.to_dict("index").items()
    }
    with _evaluation(directory, run) as folder:
        outlines = files.parse_json((folder / evaluate.OUTLINES).read_text("utf-8"))
        found = []
        for details in map(split.details, range(len(split))):
            name, reading = details["image_id"], None
            if name in by_image:
                reading = _reading(
                    by_image[name], outlines[name], details["frame"], size
                )
            found.append(reading)
    return found


def _reading(
    numbers: Mapping[str, float],
    outlines: Mapping[str, Any],
    frame: geometry.Frame,
    size: tuple[int, int],
) -> Reading:
    marks: dict[str, Any] = {
        name: [np.array(line) for line in lines] for name, lines in outlines.items()
    }
    for task in tasks.of_kind("localisation"):
        x, y = (numbers.get(f"{task.name}_{axis}") for axis in "xy")
        if x is not None and y is not None:
            marks[task.name] = geometry.xy_to_model([x, y], frame, size)
    return Reading(marks, numbers)


def scores(directory: pathlib.Path, run: RunKey) -> pd.Series:
    """Reads the validation score by epoch; the mean if a run has several networks.

    An epoch that one of the networks has not reached has no score.
    """
    log = _log(directory, run)
    by_epoch = log.groupby("epoch")["validation/score"]
    return by_epoch.mean()[by_epoch.count() == log["network"].nunique()]


def minutes_per_epoch(directory: pathlib.Path, run: RunKey) -> float:
    """Computes how long the steps of the fastest epoch took, summed over networks.

    Other work on the machine only makes epochs slower. The result is NaN if a network
    has no seconds, as after a single step.
    """
    seconds = "train/seconds_per_step"
    log = _log(directory, run).groupby(["network", "epoch"])
    epochs = log[["step", seconds]].last().reset_index()
    epochs["num_steps"] = epochs["step"] / epochs["epoch"]
    networks = epochs.groupby("network")
    minutes = networks["num_steps"].max() * networks[seconds].min() / 60
    return minutes.sum(skipna=False)


def _log(directory: pathlib.Path, run: RunKey) -> pd.DataFrame:
    """Reads the training logs of a run's networks, one row per line."""
    lines = [
        {"network": str(path), **line}
        for path in run.workdir(directory).rglob(metric_log.FILE)
        for line in metric_log.read(path)
    ]
    log = pd.DataFrame(lines, columns=["network", *_LOGGED])
    return log.astype(dict.fromkeys(_LOGGED, float))


@contextlib.contextmanager
def _evaluation(directory: pathlib.Path, run: RunKey) -> Iterator[pathlib.Path]:
    """Yields the folder of a run's evaluation, and says what to do if it is damaged."""
    workdir = run.workdir(directory)
    advice = f"evaluate that run again with scripts/evaluate.py --workdir={workdir}."
    try:
        yield workdir / "evaluation" / "test-model"
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}); {advice}"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"The evaluation of {workdir} is damaged ({type(error).__name__}: "
            f"{str(error).strip()}); {advice}"
        ) from error
