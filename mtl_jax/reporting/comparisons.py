"""Methods compared with each other, run by run and image by image."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mtl_jax import metrics
from mtl_jax.methods import METHODS
from mtl_jax.metrics import DIAGNOSIS, Metric
from mtl_jax.reporting import statistics
from mtl_jax.reporting.page import Table
from mtl_jax.reporting.runs import RunKey

NOTE = (
    "An interval of runs is the bootstrap over pairs of runs of the same fold and "
    "seed. With three to five pairs it says little more than their range. An interval "
    "of images is the bootstrap over test images of the mean AUC of the runs whose "
    "fold and seed both methods have."
)

_HEADS = ("metric", "methods", "difference", "95 % interval", "n")


def diagnoses(numbers: Mapping[RunKey, pd.DataFrame]) -> dict[RunKey, pd.DataFrame]:
    """Selects the images that have both a diagnosis and a prediction of it.

    Args:
      numbers: numbers of each run, see `runs.image_numbers`.

    Returns:
      `probability` and `glaucoma` by image, of the runs that have both classes.
    """
    found = {
        run: images[["probability", DIAGNOSIS]].dropna()
        for run, images in numbers.items()
    }
    return {
        run: cases for run, cases in found.items() if cases[DIAGNOSIS].nunique() == 2
    }


def table(rows: pd.DataFrame, diagnosed: Mapping[RunKey, pd.DataFrame]) -> Table:
    """Compares every pair of methods.

    Args:
      rows: rows of `results.csv`.
      diagnosed: see `diagnoses`.
    """
    methods = [name for name in METHODS if name in set(rows.method)]
    compared = metrics.at("comparison")
    values = (
        rows[(rows.split == "test") & (rows.resolution == "model")]
        .pivot(index=["fold", "seed"], columns=["metric", "method"], values="value")
        .reindex(columns=pd.MultiIndex.from_product([list(compared), methods]))
    )
    lines = []
    for first, second in itertools.combinations(methods, 2):
        for name, metric in compared.items():
            pair = values[name, first], values[name, second]
            if difference := statistics.paired_difference(*pair):
                lines.append(_line(metric, first, second, difference, "runs"))
        if difference := _auc_difference(diagnosed, first, second):
            lines.append(_line(compared["auc"], first, second, difference, "images"))
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
    scores, reference = np.split(np.stack([each.probability for each in cases]), 2)
    labels = cases[0][DIAGNOSIS].to_numpy()
    return statistics.auc_difference(scores, reference, labels)


def _line(
    metric: Metric,
    first: str,
    second: str,
    difference: statistics.Difference,
    counted: str,
) -> tuple[str, ...]:
    mean, low, high = (
        f"{metric.unit.factor * value:+.{metric.unit.digits}f}"
        for value in difference[:3]
    )
    methods = f"{METHODS[first].heading} minus {METHODS[second].heading}"
    count = f"{difference.count} {counted}"
    return metric.column, methods, mean, f"{low} to {high}", count
