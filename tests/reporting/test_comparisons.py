"""Which runs of two methods are held against each other."""

import numpy as np
import pytest

from mtl_jax.reporting import comparisons

TRUTH = np.array([0, 0, 1, 1])
RIGHT, WRONG = (0.1, 0.2, 0.8, 0.9), (0.9, 0.8, 0.2, 0.1)


def diagnoses(fold, scores, images="abcd"):
    return comparisons.Diagnoses(
        (str(fold), 0, 1e-4), tuple(images), np.array(scores), TRUTH
    )


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


ROWS = [*rows("independent", [0.8, 0.9]), *rows("single", [0.9, 0.8, 0.1])]


def test_runs_are_paired_by_fold():
    ((head, methods, difference, interval, count),) = comparisons.lines(ROWS, {})
    assert (head, methods) == ("AUC, %", "STL minus MTL-IO")
    assert (difference, count) == ("+0.00", "2 runs")
    assert interval == "-10.00 to +10.00"


def test_images_are_compared_over_the_runs_of_both():
    """A fold that only one method has, however hard, is no difference between them."""
    found = {
        "single": [diagnoses(0, RIGHT), diagnoses(1, RIGHT), diagnoses(2, WRONG)],
        "independent": [diagnoses(1, RIGHT), diagnoses(0, WRONG)],
    }
    *_, line = comparisons.lines(ROWS, found)
    assert line[2:] == ["+50.00", "+50.00 to +50.00", "4 images"]


@pytest.mark.parametrize(
    "others",
    [[], [diagnoses(7, RIGHT)], [diagnoses(0, RIGHT, "abcx")]],
    ids=["none", "another fold", "other images"],
)
def test_without_runs_and_images_in_common_there_is_no_such_line(others):
    found = {"single": [diagnoses(0, RIGHT)], "independent": others}
    lines = comparisons.lines(ROWS, found)
    assert [line[-1] for line in lines] == ["2 runs"]
