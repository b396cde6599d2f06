"""Reads and writes the results of an experiment: one row for each run and metric."""

import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from mtl_jax import files, metrics
from mtl_jax.experiments.plan import Run
from mtl_jax.training import metric_log

COLUMNS = (
    "method",
    "fold",
    "seed",
    "learning_rate",
    "split",
    "resolution",
    "metric",
    "value",
)

# The evaluation of a run writes this file. A run with it is finished.
RESULT = "result.json"

Row = dict[str, Any]


def rows_of(
    run: Run, workdir: pathlib.Path, evaluations: Sequence[dict[str, Any]]
) -> list[Row]:
    """Makes the rows of a finished run.

    Args:
      run: the run.
      workdir: folder of the run.
      evaluations: results of `evaluation.evaluate`, one for each resolution.

    Returns:
      The test metrics at each resolution; the best value of each validation metric,
      loss and score over the epochs; the parameters; the seconds a step. The score of
      several networks is the mean of theirs. `two_stage` has no validation rows,
      because its second stage is validated around annotated discs. A value that could
      not be computed has no row.
    """
    key = {
        "method": run.method,
        "fold": run.fold,
        "seed": run.seed,
        "learning_rate": run.learning_rate,
    }
    rows = []

    def add(split: str, resolution: str, metric: str, value: Any) -> None:
        if isinstance(value, int | float):
            measure = {"split": split, "resolution": resolution, "metric": metric}
            rows.append({**key, **measure, "value": float(value)})

    for found in evaluations:
        for name in found["num_images"]:
            add(found["split"], found["resolution"], name, found[name])
    if run.config.method.name != "two_stage":
        for name, value in _best_validation(workdir).items():
            add("validation", "model", name, value)
    add("", "", "num_parameters", evaluations[0]["num_parameters"])
    add("", "", "seconds_per_step", evaluations[0]["seconds_per_step"])
    return rows


def write(directory: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes `results.csv` into the experiment's directory, whole or not at all."""
    text = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False)
    files.write_text(directory / "results.csv", text)


def read(directory: pathlib.Path) -> list[Row]:
    """Reads the rows of `results.csv`."""
    rows = pd.read_csv(
        directory / "results.csv",
        dtype={"fold": str, "learning_rate": float, "value": float},
        keep_default_na=False,
    )
    return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]


def finished(workdir: pathlib.Path) -> list[Row] | None:
    """Reads the rows of a run; None if it is not finished."""
    path = workdir / RESULT
    return files.parse_json(path.read_text()) if path.exists() else None


def best_rates(rows: Sequence[Row]) -> dict[str, float]:
    """Finds each method's learning rate with the best score on the first fold."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        measure = row["fold"], row["split"], row["metric"]
        if measure == ("0", "validation", "score"):
            own = row["value"], row["learning_rate"]
            best[row["method"]] = max(own, best.get(row["method"], own))
    return {method: rate for method, (_, rate) in best.items()}


def at_best_rates(rows: Sequence[Row]) -> list[Row]:
    """Selects the rows of a cross-validation at each method's best learning rate.

    A method with one rate, or without a validation score, keeps all its rows.
    """
    best = best_rates(rows)
    return [
        row
        for row in rows
        if row["learning_rate"] == best.get(row["method"], row["learning_rate"])
    ]


def _best_validation(workdir: pathlib.Path) -> dict[str, float]:
    """Finds the best values over the epochs, over all networks of the run."""
    best: dict[str, float] = {}
    scores = []
    for log in sorted(workdir.rglob(metric_log.FILE)):
        own = _best_of(log)
        if "score" in own:
            scores.append(own.pop("score"))
        best |= own
    return best | ({"score": statistics.fmean(scores)} if scores else {})


def _best_of(log: pathlib.Path) -> dict[str, float]:
    best: dict[str, float] = {}
    # Of all others, losses and errors, smaller is better.
    rising = {*metrics.rising(), "score"}
    for line in metric_log.read(log):
        for key, value in line.items():
            split, _, name = key.partition("/")
            if split != "validation" or value is None:
                continue
            choose = max if name in rising else min
            best[name] = choose(best.get(name, value), value)
    return best
