"""What the runs of an experiment have come to: one row for each run and metric."""

import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from mtl_jax import files, metrics
from mtl_jax.experiments.plan import Run

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

# Written when a run has been evaluated: with it, a run is finished.
RESULT = "result.json"

Row = dict[str, Any]


def rows_of(
    run: Run, workdir: pathlib.Path, evaluations: Sequence[dict[str, Any]]
) -> list[Row]:
    """The rows of a finished run.

    Args:
      run: which it is.
      workdir: of the run.
      evaluations: what `evaluation.evaluate` said of it, once for each resolution.

    Returns:
      Test metrics at each resolution; of the validation split, whatever the epoch, the
      best value of each metric, the smallest loss of each task, and the best score, of
      several networks the mean of theirs (none of two stages, of which the second is
      validated around annotated discs); parameters and seconds a step. Nothing for what
      could not be computed.
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
            place = {"split": split, "resolution": resolution, "metric": metric}
            rows.append({**key, **place, "value": float(value)})

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
    """Writes `results.csv` into the experiment's directory, at once or not at all."""
    text = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False)
    files.write_text(directory / "results.csv", text)


def read(directory: pathlib.Path) -> list[Row]:
    """The rows of `results.csv`."""
    types = {"fold": str, "learning_rate": float, "value": float}
    rows = pd.read_csv(directory / "results.csv", dtype=types, keep_default_na=False)
    return rows.to_dict("records")


def finished(workdir: pathlib.Path) -> list[Row] | None:
    """The rows of a run, or None if it is not finished."""
    path = workdir / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def best_rates(rows: Sequence[Row]) -> dict[str, float]:
    """By method the learning rate of the best validation score on the first fold."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        place = row["fold"], row["split"], row["metric"]
        if place == ("0", "validation", "score"):
            own = row["value"], row["learning_rate"]
            best[row["method"]] = max(own, best.get(row["method"], own))
    return {method: rate for method, (_, rate) in best.items()}


def at_best_rates(rows: Sequence[Row]) -> list[Row]:
    """The rows of each method's best learning rate; all of a method with a single one.

    For cross-validations; see `best_rates`.
    """
    best = best_rates(rows)
    return [
        row
        for row in rows
        if row["learning_rate"] == best.get(row["method"], row["learning_rate"])
    ]


def _best_validation(workdir: pathlib.Path) -> dict[str, float]:
    """Best values over the epochs; of several networks, each of the tasks it has."""
    best: dict[str, float] = {}
    scores = []
    for log in sorted(workdir.rglob("metrics.jsonl")):
        own = _best_of(log)
        if "score" in own:
            scores.append(own.pop("score"))
        best |= own
    return best | ({"score": statistics.fmean(scores)} if scores else {})


def _best_of(log: pathlib.Path) -> dict[str, float]:
    best: dict[str, float] = {}
    # Of all others, losses and errors, smaller is better.
    rising = {*metrics.rising(), "score"}
    for line in log.read_text().splitlines():
        for key, value in json.loads(line).items():
            split, _, name = key.partition("/")
            if split != "validation" or value is None:
                continue
            choose = max if name in rising else min
            best[name] = choose(best.get(name, value), value)
    return best
