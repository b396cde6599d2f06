import itertools

import numpy as np
import pytest

from mtl_jax.reporting import pictures


def row_of(quality):
    """A row whose quality is the given number."""
    return {
        "dice_disc": quality,
        "dice_cup": None,
        "fovea_error": None,
        "glaucoma": None,
        "probability": None,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"dice_disc": 0.8, "dice_cup": 0.4}, 0.6),
        ({"fovea_error": 8.0}, 0.75),
        ({"glaucoma": 1, "probability": 0.3}, 0.3),
        ({"glaucoma": 0, "probability": 0.3}, 0.7),
        ({"glaucoma": 0}, None),
        ({"probability": 0.3}, None),
        (
            {
                "dice_disc": 1.0,
                "dice_cup": 0.5,
                "fovea_error": 16.0,
                "glaucoma": 0,
                "probability": 0.0,
            },
            0.75,
        ),
    ],
)
def test_quality_by_hand(changes, expected):
    found = pictures.quality({**row_of(None), **changes}, 32)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("count", range(13))
def test_cases_by_rank(count):
    order = np.random.default_rng(count).permutation(count)
    rows = [row_of(float(rank)) for rank in order]
    rows.insert(0, row_of(None))
    chosen = pictures.choose_cases(rows, 32)
    assert 0 not in {index for found in chosen.values() for index in found}
    ranks = {kind: [order[i - 1] for i in found] for kind, found in chosen.items()}
    size = min(3, max(count // 3, 1))
    top = list(range(count - 1, -1, -1))
    assert ranks["best"] == top[:size]
    assert ranks["worst"] == list(range(min(size, max(count - size, 0))))
    if count >= 3:
        assert len(ranks["median"]) == size
        assert max(ranks["worst"]) < min(ranks["median"])
        assert max(ranks["median"]) < min(ranks["best"])
        assert abs(np.mean(ranks["median"]) - (count - 1) / 2) <= 0.5
    else:
        assert not ranks["median"]


def test_cases_of_equal_quality():
    chosen = pictures.choose_cases([row_of(0.5)] * 9, 32)
    assert sorted(itertools.chain(*chosen.values())) == list(range(9))
