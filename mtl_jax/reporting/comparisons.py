"""Methods compared with each other, run by run and image by image."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mtl_jax.methods import METHODS
from mtl_jax.reporting import statistics, tables
from mtl_jax.reporting.page import Table
from mtl_jax.reporting.runs import RunKey

NOTE = (
    "An interval of runs is the bootstrap over pairs of runs of the same fold and "
    "seed. With three to five pairs it says little more than their range. An interval "
    "of images is the bootstrap over test images of the mean AUC of the runs whose "
    "fold and seed both methods have."
)

_HEADS = ("metric", "methods", "difference", "95 % interval", "n")
_COMPARED = ("auc", "dice_disc", "dice_cup", "fovea_error", "vcdr_mae")
_COLUMNS = {column.metric: column for column in tables.COLUMNS}


def diagnoses(numbers: Mapping[RunKey, pd.DataFrame]) -> dict[RunKey, pd.DataFrame]:
    """Selects the images that have both a diagnosis and a prediction of it.

    Args:
      numbers: numbers of each run, see `runs.image_numbers`.

    Returns:
      `probability` and `glaucoma` by image, of the runs that have both classes.
    """
    found = {
        run: images[["probability", "glaucoma"]].dropna()
        for run, images in numbers.items()
    }
    return {run: cases for run, cases in found.items() if cases.glaucoma.nunique() == 2}


def table(rows: pd.DataFrame, diagnosed: Mapping[RunKey, pd.DataFrame]) -> Table:
    """Compares every pair of methods.

    Args:
      rows: rows of `results.csv`.
      diagnosed: see `diagnoses`.
    """
    methods = [name for name in METHODS if name in set(rows.method)]
    values = (
        rows[(rows.split == "test") & (rows.resolution == "model")]
        .pivot(index=["fold", "seed"], columns=["metric", "method"], values="value")
        .reindex(columns=pd.MultiIndex.from_product([_COMPARED, methods]))
    )
    lines = []
    for first, second in itertools.combinations(methods, 2):
        for metric in _COMPARED:
            pair = values[metric, first], values[metric, second]
            if difference := statistics.paired_difference(*pair):
                lines.append(_line(metric, first, second, difference, "runs"))
        if difference := _auc_difference(diagnosed, first, second):
            lines.append(_line("auc", first, second, difference, "images"))
    return Table(_HEADS, lines, NOTE)


def _auc_difference(
    diagnosed: Mapping[RunKey, pd.DataFrame], first: str, second: str
) -> statistics.Difference | None:
    """Compares the runs of two methods that have the same fold and seed."""
    by_key = [
        {run[:2]: cases for run, cases in diagnosed.items() if run.method == method}
        for method in (first, second)
    ]
    common = sorted(by_key[0].keys() & by_key[1].keys())
    cases = [own[key] for own in by_key for key in common]
    # The runs are comparable only if all of them scored the same images.
    if not cases or any(not each.index.equals(cases[0].index) for each in cases):
        return None
    scores = np.split(np.stack([each.probability for each in cases]), 2)
    return statistics.auc_difference(*scores, cases[0].glaucoma)


def _line(
    metric: str, first: str, second: str, difference: statistics.Difference, unit: str
) -> tuple[str, ...]:
    column = _COLUMNS[metric]
    mean, low, high = (
        f"{column.factor * value:+.{column.digits}f}" for value in difference[:3]
    )
    methods = f"{METHODS[first].heading} minus {METHODS[second].heading}"
    count = f"{difference.count} {unit}"
    return column.head, methods, mean, f"{low} to {high}", count
