"""Sums up a table of predictions: counts by quality and decision, and a histogram."""

import collections
import csv
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax import files, metrics

_BINS = 10
# Characters of the longest bar.
_WIDTH = 40
# What photographs without doubts are counted as.
GOOD = "no doubt"


def rows(table: pathlib.Path) -> Iterator[dict[str, str]]:
    """Reads the rows of a table that `files` wrote, one after the other."""
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {name: files.text_of(cell) for name, cell in row.items()}


def doubts(cell: str) -> list[str]:
    """Names the doubts of a cell in the column `quality`."""
    # A reason may hold a semicolon, but no colon.
    parts = (part.partition(": ") for part in cell.split("; "))
    return [name for name, colon, _ in parts if colon]


def summarise(table: pathlib.Path, skipped: Sequence[str]) -> dict[str, Any]:
    """Counts the rows of a table, in constant memory.

    Args:
      table: path of `predictions.csv`.
      skipped: a sentence for each photograph that has no row.

    Returns:
      `photographs`, the number of rows; `quality`, numbers by doubt (a photograph may
      have several); `decision`, numbers by diagnosis, which is empty where there is
      none; `histogram`, numbers by tenth of the probability of glaucoma, the last with
      1 itself; and `skipped`.
    """
    quality, decision = collections.Counter[str](), collections.Counter[str]()
    histogram = [0] * _BINS
    for row in rows(table):
        quality.update(doubts(row["quality"]) or [GOOD])
        decision[_DECISIONS[row[metrics.DIAGNOSIS]]] += 1
        if row["probability"]:
            place = int(float(row["probability"]) * _BINS)
            histogram[min(place, _BINS - 1)] += 1
    return {
        "photographs": decision.total(),
        "quality": dict(quality.most_common()),
        "decision": dict(decision.most_common()),
        "histogram": histogram,
        "skipped": list(skipped),
    }


_DECISIONS = {
    "1": metrics.DIAGNOSIS,
    "0": f"no {metrics.DIAGNOSIS}",
    "": "no diagnosis",
}


def text(summary: Mapping[str, Any]) -> str:
    """Writes a summary as lines of text."""
    lines = [f"photographs {summary['photographs']}"]
    if summary["skipped"]:
        lines[0] += f", and {len(summary['skipped'])} skipped"
    for heading in ("quality", "decision"):
        counts = summary[heading].items()
        lines.append(f"{heading}: " + ", ".join(f"{n} {name}" for name, n in counts))
    if most := max(summary["histogram"]):
        lines.append(f"P({metrics.DIAGNOSIS})")
        for tenth, count in enumerate(summary["histogram"]):
            bar = "#" * -(-_WIDTH * count // most)
            low, high = tenth / _BINS, (tenth + 1) / _BINS
            lines.append(f"  {low:.1f}-{high:.1f} {count:7} {bar}".rstrip())
    return "\n".join(lines)
