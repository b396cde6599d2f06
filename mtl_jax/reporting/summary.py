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


# What the cells of the column of the diagnosis mean.
DECISIONS = {
    "1": metrics.DIAGNOSIS,
    "0": f"no {metrics.DIAGNOSIS}",
    "": "no diagnosis",
}


def rows(table: pathlib.Path) -> Iterator[dict[str, str]]:
    """Reads the rows of a table that `files` wrote, one after the other."""
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {name: files.text_of(cell) for name, cell in row.items()}


def reasons(cell: str) -> list[str]:
    """The doubts of a cell in the column `quality`, with their reasons."""
    found: list[str] = []
    for part in filter(None, cell.split("; ")):
        # A reason may hold a semicolon, but no colon.
        if ": " in part or not found:
            found.append(part)
        else:
            found[-1] += f"; {part}"
    return found


def doubts(cell: str) -> list[str]:
    """Names the doubts of a cell in the column `quality`."""
    return [reason.partition(": ")[0] for reason in reasons(cell)]


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
        decision[DECISIONS[row[metrics.DIAGNOSIS]]] += 1
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


def counts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Writes the counts of a summary as name and text."""
    photographs = str(summary["photographs"])
    if summary["skipped"]:
        photographs += f", and {len(summary['skipped'])} skipped"
    return [("photographs", photographs)] + [
        (name, ", ".join(f"{count} {what}" for what, count in summary[name].items()))
        for name in ("quality", "decision")
    ]


def text(summary: Mapping[str, Any]) -> str:
    """Writes a summary as lines of text."""
    lines = [f"{name}: {text}" for name, text in counts(summary)]
    if most := max(summary["histogram"]):
        lines.append(f"P({metrics.DIAGNOSIS})")
        for tenth, count in enumerate(summary["histogram"]):
            bar = "#" * -(-_WIDTH * count // most)
            low, high = tenth / _BINS, (tenth + 1) / _BINS
            lines.append(f"  {low:.1f}-{high:.1f} {count:7} {bar}".rstrip())
    return "\n".join(lines)
