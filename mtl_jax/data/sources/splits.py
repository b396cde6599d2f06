"""Random splits that keep the photographs of a patient together."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mtl_jax.data.sources.rows import Row

# Of the photographs, if a source has no splits; validation's share of the training
# photographs, if it has but these and a test split.
HELD_OUT = 0.2


def assign(rows: Sequence[Row]) -> list[Row]:
    """Gives 60 % of the rows to train, and 20 % each to validation and test."""
    held_out = round(HELD_OUT * len(rows))
    drawn = draw(rows, {"validation": held_out, "test": held_out}, rest="train")
    return [dataclasses.replace(row, split=drawn[row.image_id]) for row in rows]


def assign_validation(rows: Sequence[Row]) -> list[Row]:
    """Moves 20 % of the training rows to validation, if there are none."""
    if any(row.split == "validation" for row in rows):
        return list(rows)
    train = [row for row in rows if row.split == "train"]
    drawn = draw(train, {"validation": round(HELD_OUT * len(train))}, rest="train")
    return [
        dataclasses.replace(row, split=drawn.get(row.image_id, row.split))
        for row in rows
    ]


def draw(rows: Sequence[Row], sizes: dict[str, int], rest: str) -> dict[str, str]:
    """Draws splits of about these sizes at random, patient by patient.

    The same names always give the same splits, in any order. Without patients the sizes
    are exact.

    Args:
      rows: the photographs.
      sizes: numbers of photographs, by split.
      rest: the split of all others.

    Returns:
      The split of each `image_id`.
    """
    patients = {row.image_id: row.patient or row.image_id for row in rows}
    members: dict[str, list[str]] = {}
    for name in sorted(patients):
        members.setdefault(patients[name], []).append(name)
    names = sorted(patients)
    # RandomState's streams are frozen for all versions of NumPy; Generator's are not.
    order = np.random.RandomState(0).permutation(len(names))
    found: dict[str, str] = {}
    filling, filled = iter(sizes.items()), 0
    split, size = next(filling)
    for i in order:
        group = members[patients[names[i]]]
        if names[i] in found:
            continue
        while split != rest and filled + len(group) / 2 > size:
            (split, size), filled = next(filling, (rest, 0)), 0
        found |= dict.fromkeys(group, split)
        filled += len(group)
    return found
