"""The report of an experiment: tables, comparisons and figures from its results."""

import csv
import itertools
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from mtl_jax import configuration, files
from mtl_jax.drawing import curves
from mtl_jax.errors import UserError
from mtl_jax.experiments import results
from mtl_jax.reporting import published, statistics, tables
from mtl_jax.reporting.tables import NAMES

CONTENTS = ("*.md", "*.csv", "*.tex", "*.png", "*.pdf")

_COMPARED = ("auc", "dice_disc", "dice_cup", "fovea_error", "vcdr_mae")
_HEADS = {column.metric: column for column in tables.COLUMNS}
_SWEPT = {
    "auc": "AUC",
    "dice_disc": "disc Dice",
    "dice_cup": "cup Dice",
    "fovea_error": "fovea error, px",
    "loss_glaucoma": "glaucoma loss",
    "loss_disc": "disc loss",
    "loss_cup": "cup loss",
    "loss_fovea": "fovea loss",
}


def write(directory: pathlib.Path) -> pathlib.Path:
    """Writes `report/` into an experiment's directory.

    `table-RESOLUTION.md`, `.tex` and `.csv`; `comparisons.md`; `roc.png` and `.pdf`;
    of a study of learning rates `learning_rates.png` and `.pdf`.

    Args:
      directory: of the experiment.

    Returns:
      The folder written.

    Raises:
      UserError: if it holds no experiment, or no finished run.
    """
    directory = pathlib.Path(directory)
    try:
        record = json.loads((directory / "experiment.json").read_text())
        rows = results.read(directory)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{directory} holds no results of an experiment ({error}); name the folder "
            "that scripts/cross_validate.py or its like wrote."
        ) from error
    if not rows:
        raise UserError(f"No run in {directory} is finished; there is nothing to tell.")
    config = configuration.stored(json.dumps(record["config"]))
    theirs = _published(record["kind"], config)
    output = directory / "report"
    with files.whole_directory(output, CONTENTS) as folder:
        for resolution in ("model", "native"):
            table = tables.lines(rows, resolution)
            # The paper's are at model resolution.
            beside = theirs if resolution == "model" else {}
            for suffix, text in (
                ("md", tables.markdown(table, beside)),
                ("tex", tables.latex(table, beside)),
                ("csv", tables.as_csv(table, beside)),
            ):
                files.write_text(folder / f"table-{resolution}.{suffix}", text)
        if record["kind"] == "learning_rates":
            curves.plot_learning_rates(_panels(rows), folder / "learning_rates")
        else:
            files.write_text(folder / "comparisons.md", _comparisons(directory, rows))
        scores = {
            NAMES[method]: [(s, y) for _, s, y in runs]
            for method, runs in _diagnoses(directory, rows).items()
        }
        if scores:
            curves.plot_mean_roc(scores, folder / "roc")
    return output


def _published(kind: str, config: configuration.Config) -> tables.Published:
    """The paper's figures that a table of this experiment can be held against."""
    if kind == "learning_rates":
        return {}
    if kind == "cross_validation":
        return {
            method: {"auc": figures}
            for method, figures in published.JOURNAL_AUC.items()
        }
    is_pretrained = bool(config.model.pretrained)
    return published.PRETRAINED if is_pretrained else published.FROM_SCRATCH


def _panels(rows: Sequence[results.Row]) -> dict[str, curves.Panel]:
    """Best validation metric and smallest loss by method and learning rate."""
    panels = {}
    for metric, title in _SWEPT.items():
        own = [
            row
            for row in rows
            if row["split"] == "validation" and row["metric"] == metric
        ]
        panel: dict[str, dict[float, list[float]]] = {}
        for row in own:
            values = panel.setdefault(NAMES[row["method"]], {})
            values.setdefault(row["learning_rate"], []).append(row["value"])
        if panel:
            panels[title] = panel
    return panels


def _diagnoses(
    directory: pathlib.Path, rows: Sequence[results.Row]
) -> dict[str, list[tuple[tuple[str, ...], np.ndarray, np.ndarray]]]:
    """Image names, probabilities and labels of the runs that have them, by method."""
    found = {}
    keys = ("method", "fold", "seed", "learning_rate")
    for key in sorted({tuple(row[k] for k in keys) for row in rows}):
        method, fold, seed, rate = key
        name = f"{method}-fold_{fold}-seed_{seed}-lr_{rate:g}"
        path = directory / "runs" / name / "evaluation/test-model/per_image.csv"
        with path.open(newline="") as file:
            cases = [
                (line["image_id"], float(line["probability"]), float(line["glaucoma"]))
                for line in csv.DictReader(file)
                if line["probability"] and line["glaucoma"]
            ]
        if len({label for *_, label in cases}) == 2:
            names, scores, labels = zip(*sorted(cases), strict=True)
            run = names, np.array(scores), np.array(labels)
            found.setdefault(method, []).append(run)
    return found


def _comparisons(directory: pathlib.Path, rows: Sequence[results.Row]) -> str:
    """Every method beside every other, run by run, and AUC image by image."""
    methods = sorted({row["method"] for row in rows}, key=list(NAMES).index)
    diagnoses = _diagnoses(directory, rows)
    lines = [
        "| metric | methods | difference | 95 % interval | n |",
        "|---|---|---|---|---|",
    ]

    def add(what, first, second, difference, factor, digits, unit):
        if difference is not None:
            mean, low, high = (
                f"{factor * value:+.{digits}f}" for value in difference[:3]
            )
            lines.append(
                f"| {what} | {NAMES[first]} minus {NAMES[second]} | {mean} | {low} to "
                f"{high} | {difference.count} {unit} |"
            )

    for first, second in itertools.combinations(methods, 2):
        for metric in _COMPARED:
            values = [
                {
                    (row["fold"], row["seed"], row["learning_rate"]): row["value"]
                    for row in rows
                    if row["method"] == method
                    and row["metric"] == metric
                    and row["split"] == "test"
                    and row["resolution"] == "model"
                }
                for method in (first, second)
            ]
            column = _HEADS[metric]
            add(
                column.head,
                first,
                second,
                statistics.paired_difference(*values),
                column.factor,
                column.digits,
                "runs",
            )
        if first in diagnoses and second in diagnoses:
            runs = [diagnoses[first], diagnoses[second]]
            # All must have scored the same images.
            if len({names for names, *_ in itertools.chain(*runs)}) == 1:
                scores = [np.stack([s for _, s, _ in r]) for r in runs]
                difference = statistics.auc_difference(*scores, runs[0][0][2])
                add("AUC, %", first, second, difference, 100, 2, "images")
    lines += [
        "",
        "Of runs: the bootstrap over pairs of runs of the same fold and seed. Of "
        "images: the bootstrap over test images, of the mean AUC of a method's runs.",
    ]
    return "\n".join(lines) + "\n"
