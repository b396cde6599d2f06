"""Methods compared with each other, run by run and image by image."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.experiments import results
from mtl_jax.reporting import statistics, tables
from mtl_jax.reporting.runs import ImageRow, Run
from mtl_jax.reporting.tables import NAMES

HEADS = ("metric", "methods", "difference", "95 % interval", "n")
EXPLANATION = (
    "Of runs: the bootstrap over pairs of runs of the same fold and seed; of three to "
    "five pairs it says little more than their range. Of images: the bootstrap over "
    "test images, of the mean AUC of the runs whose fold and seed both methods have."
)

_COMPARED = ("auc", "dice_disc", "dice_cup", "fovea_error", "vcdr_mae")
_COLUMNS = {column.metric: column for column in tables.COLUMNS}


class Diagnoses(NamedTuple):
    """What one run said of the images whose diagnosis is known.

    Attributes:
      key: fold and seed of the run.
      images: their names.
      scores: [N] probabilities of glaucoma.
      labels: [N] zeros and ones.
    """

    key: tuple[str, int]
    images: tuple[str, ...]
    scores: np.ndarray
    labels: np.ndarray


def diagnoses(
    images: Mapping[Run, Sequence[ImageRow]],
) -> dict[str, list[Diagnoses]]:
    """By method those of its runs in which both classes are present."""
    found: dict[str, list[Diagnoses]] = {}
    for run, rows in images.items():
        cases = sorted(
            (name, numbers["probability"], numbers["glaucoma"])
            for name, numbers in rows
            if None not in (numbers["probability"], numbers["glaucoma"])
        )
        if len({label for *_, label in cases}) == 2:
            names, scores, labels = zip(*cases, strict=True)
            key = run.fold, run.seed
            one = Diagnoses(key, names, np.array(scores), np.array(labels))
            found.setdefault(run.method, []).append(one)
    return found


def lines(
    rows: Sequence[results.Row], found: Mapping[str, Sequence[Diagnoses]]
) -> list[list[str]]:
    """Every method beside every other, as lines below `HEADS`."""
    methods = sorted({row["method"] for row in rows}, key=list(NAMES).index)
    return [
        line
        for first, second in itertools.combinations(methods, 2)
        for line in (
            *_run_by_run(rows, first, second),
            *_image_by_image(found, first, second),
        )
    ]


def _run_by_run(
    rows: Sequence[results.Row], first: str, second: str
) -> list[list[str]]:
    found = []
    for metric in _COMPARED:
        values = [
            {
                (row["fold"], row["seed"]): row["value"]
                for row in rows
                if row["method"] == method
                and row["metric"] == metric
                and row["split"] == "test"
                and row["resolution"] == "model"
            }
            for method in (first, second)
        ]
        difference = statistics.paired_difference(*values)
        if difference is not None:
            found.append(_line(_COLUMNS[metric], first, second, difference, "runs"))
    return found


def _image_by_image(
    found: Mapping[str, Sequence[Diagnoses]], first: str, second: str
) -> list[list[str]]:
    common = set.intersection(
        *({one.key for one in found.get(method, ())} for method in (first, second))
    )
    pair = [
        [one for one in found[method] if one.key in common] if common else []
        for method in (first, second)
    ]
    # All must have scored the same images.
    if len({one.images for own in pair for one in own}) != 1:
        return []
    scores = [np.stack([one.scores for one in own]) for own in pair]
    difference = statistics.auc_difference(*scores, pair[0][0].labels)
    if difference is None:
        return []
    return [_line(_COLUMNS["auc"], first, second, difference, "images")]


def _line(
    column: tables.Column,
    first: str,
    second: str,
    difference: statistics.Difference,
    unit: str,
) -> list[str]:
    mean, low, high = (
        f"{column.factor * value:+.{column.digits}f}" for value in difference[:3]
    )
    methods = f"{NAMES[first]} minus {NAMES[second]}"
    return [
        column.head,
        methods,
        mean,
        f"{low} to {high}",
        f"{difference.count} {unit}",
    ]
