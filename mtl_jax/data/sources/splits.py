"""Splits by a hash of names, which keep the photographs of a patient together."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

from mtl_jax.data.sources.rows import Row

# Of the photographs, if a source has no splits; validation's share of the training
# photographs, if it has but these and a test split.
HELD_OUT = 0.2


def assign(rows: Sequence[Row]) -> list[Row]:
    """Gives about 60 % of the rows to train, and 20 % each to validation and test."""
    dealt = deal(rows, {"validation": HELD_OUT, "test": HELD_OUT}, rest="train")
    return [dataclasses.replace(row, split=dealt[row.image_id]) for row in rows]


def assign_validation(rows: Sequence[Row]) -> list[Row]:
    """Moves about 20 % of the training rows to validation, if there are none."""
    if any(row.split == "validation" for row in rows):
        return list(rows)
    train = [row for row in rows if row.split == "train"]
    dealt = deal(train, {"validation": HELD_OUT}, rest="train")
    return [
        dataclasses.replace(row, split=dealt.get(row.image_id, row.split))
        for row in rows
    ]


def deal(rows: Sequence[Row], shares: dict[str, float], rest: str) -> dict[str, str]:
    """Deals photographs to splits, patient by patient, each by the hash of its name.

    Another photograph therefore moves none of the others, such as from test to train.
    The exception are sets of so few that a split would be empty: it takes a patient
    from the largest.

    Args:
      rows: the photographs.
      shares: of all names, by split.
      rest: the split of all others.

    Returns:
      The split of each `image_id`.
    """
    ends = list(zip(itertools.accumulate(shares.values()), shares, strict=True))
    dealt: dict[str, list[str]] = {split: [] for split in (*shares, rest)}
    for name in sorted({_group(row) for row in rows}, key=_lot):
        dealt[next((s for end, s in ends if _lot(name) < end), rest)].append(name)
    for names in dealt.values():
        largest = max(dealt.values(), key=len)
        if not names and len(largest) > 1:
            names.append(largest.pop())
    split_of = {name: split for split, names in dealt.items() for name in names}
    return {row.image_id: split_of[_group(row)] for row in rows}


def _group(row: Row) -> str:
    return row.patient or row.image_id


def _lot(name: str) -> float:
    """A number in [0, 1) that is the same on every machine."""
    # A file's name may have bytes that are not UTF-8.
    encoded = name.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(encoded, digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56
