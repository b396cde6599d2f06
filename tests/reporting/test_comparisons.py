"""Which runs of two methods are held against each other."""

import pandas as pd
import pytest

from mtl_jax.reporting import comparisons
from mtl_jax.reporting.runs import RunKey

TRUTH = (0.0, 0.0, 1.0, 1.0)
RIGHT, WRONG = (0.1, 0.2, 0.8, 0.9), (0.9, 0.8, 0.2, 0.1)


def diagnosed(**methods):
    """The runs of each method, as (fold, scores, names of the images)."""
    return {
        RunKey(str(fold), 0, 1e-4, method): pd.DataFrame(
            {"probability": scores, "glaucoma": TRUTH}, index=[*images]
        )
        for method, runs in methods.items()
        for fold, scores, images in runs
    }


def rows(method, values, metric="auc"):
    return [
        {
            "method": method,
            "fold": str(fold),
            "seed": 0,
            "learning_rate": 1e-4,
            "split": "test",
            "resolution": "model",
            "metric": metric,
            "value": value,
        }
        for fold, value in enumerate(values)
    ]


ROWS = pd.DataFrame(
    [*rows("independent", [0.8, 0.9]), *rows("single", [0.9, 0.8, 0.1])]
)


def test_runs_are_paired_by_fold():
    ((head, methods, difference, interval, count),) = comparisons.table(ROWS, {}).rows
    assert (head, methods) == ("AUC, %", "STL minus MTL-IO")
    assert (difference, count) == ("+0.00", "2 runs")
    assert interval == "-10.00 to +10.00"


def test_images_are_compared_over_the_runs_of_both():
    """A fold that only one method has, however hard, is no difference between them."""
    found = diagnosed(
        single=[(0, RIGHT, "abcd"), (1, RIGHT, "abcd"), (2, WRONG, "abcd")],
        independent=[(1, RIGHT, "abcd"), (0, WRONG, "abcd")],
    )
    *_, line = comparisons.table(ROWS, found).rows
    assert line[2:] == ("+50.00", "+50.00 to +50.00", "4 images")


@pytest.mark.parametrize(
    "others",
    [[], [(7, RIGHT, "abcd")], [(0, RIGHT, "abcx")]],
    ids=["none", "another fold", "other images"],
)
def test_without_runs_and_images_in_common_there_is_no_such_line(others):
    found = diagnosed(single=[(0, RIGHT, "abcd")], independent=others)
    lines = comparisons.table(ROWS, found).rows
    assert [line[-1] for line in lines] == ["2 runs"]


def test_only_runs_with_both_classes_have_diagnoses():
    columns = ["probability", "glaucoma", "vcdr"]
    both = [[0.1, 0, 0.2], [0.9, 1, None], [None, 1, 0.5], [0.3, None, 0.5]]
    numbers = {
        RunKey("0", 0, 1e-4, method): pd.DataFrame(values, [*"abcd"], columns, float)
        for method, values in (("single", both), ("independent", both[:1] * 4))
    }
    ((run, images),) = comparisons.diagnoses(numbers).items()
    assert run.method == "single"
    assert list(images.index) == ["a", "b"]
