"""The paper's tables from the rows of `results.csv`: Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from mtl_jax.experiments.results import RISING, Row
from mtl_jax.reporting.published import Published
from mtl_jax.reporting.statistics import Summary, summarize

NAMES = {
    "single": "STL",
    "independent": "MTL-IO",
    "alternating": "Alternating",
    "vanilla": "Vanilla MTL",
    "gradnorm": "GradNorm",
    "pcgrad": "PCGrad",
    "per_task": "Per-task states",
    "random_grouping": "Random grouping",
    "two_stage": "Res34-Unet",
}


class Column(NamedTuple):
    """One column of numbers.

    Attributes:
      metric: its name in `results.csv`.
      head: what stands above it.
      factor: that values are multiplied by.
      digits: after the point.
      split: of the rows it is made from.
      resolution: of the table that it stands in; "" for both.
      theirs: what stands behind the head of the published figures.
    """

    metric: str
    head: str
    factor: float = 1.0
    digits: int = 2
    split: str = "test"
    resolution: str = ""
    theirs: str = "published (REFUGE)"


_TITAN = "published (REFUGE, Titan XP)"
COLUMNS = (
    Column("num_parameters", "#P, millions", 1e-6, 1, ""),
    Column("seconds_per_step", "s/iteration", 1.0, 3, "", theirs=_TITAN),
    Column("auc", "AUC, %", 100.0),
    Column("dice_disc", "disc Dice, %", 100.0),
    Column("dice_cup", "cup Dice, %", 100.0),
    Column("fovea_error", "fovea error, px", resolution="model"),
    Column("fovea_error_native", "fovea error, native px", resolution="native"),
    Column("vcdr_mae", "vCDR error", 1.0, 3),
)


class Line(NamedTuple):
    """One line of a table.

    Attributes:
      name: of the method, with the learning rate where there are several.
      method: its name in `results.csv`.
      cells: summary by metric, in the column's unit; None where no run has a value.
    """

    name: str
    method: str
    cells: dict[str, Summary | None]


def lines(rows: Sequence[Row], resolution: str = "model") -> list[Line]:
    """A line for each method, or for each of its learning rates.

    Args:
      rows: of `results.csv`.
      resolution: of the test metrics.
    """
    rates = sorted({row["learning_rate"] for row in rows})
    found = []
    for method in sorted({row["method"] for row in rows}, key=list(NAMES).index):
        for rate in rates:
            own = [
                row
                for row in rows
                if row["method"] == method
                and row["learning_rate"] == rate
                and row["resolution"] in ("", resolution)
            ]
            if not own:
                continue
            name = NAMES[method]
            if len(rates) > 1:
                name += f", learning rate {rate:g}"
            cells = {
                column.metric: summarize(
                    [
                        row["value"] * column.factor
                        for row in own
                        if row["metric"] == column.metric
                        and row["split"] == column.split
                        and column.resolution in ("", resolution)
                    ]
                )
                for column in COLUMNS
            }
            found.append(Line(name, method, cells))
    return found


def markdown(table: Sequence[Line], published: Published) -> str:
    """The table for Markdown: mean ± standard deviation (number of runs), best bold."""
    return as_markdown(*_texts(table, published, "**{}**", "±"))


def html(table: Sequence[Line], published: Published) -> str:
    """The table for a web page."""
    return as_html(*_texts(table, published, "<b>{}</b>", "±"))


def as_markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Any table as Markdown."""
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_html(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Any table as HTML; the first cell of a line is its head."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    rows = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f"<td>{text}</td>" for text in others)
        + "</tr>"
        for first, *others in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def latex(table: Sequence[Line], published: Published) -> str:
    """The table for LaTeX with the package booktabs."""
    heads, body = _texts(table, published, r"\textbf{{{}}}", r"$\pm$")
    rows = [" & ".join(line).replace("%", r"\%").replace("#", r"\#") for line in body]
    head = " & ".join(heads).replace("%", r"\%").replace("#", r"\#")
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def as_csv(table: Sequence[Line], published: Published) -> str:
    """The table's numbers, a line for each method and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["method", "metric", "mean", "standard_deviation", "num_runs"]
        + ["published_mean", "published_standard_deviation"]
    )
    for line in table:
        for column in COLUMNS:
            cell = line.cells[column.metric]
            theirs = published.get(line.method, {}).get(column.metric, ())
            theirs = (*theirs, "", "")[:2]
            if cell is not None:
                deviation = "" if cell.deviation is None else cell.deviation
                writer.writerow(
                    [line.name, column.head, cell.mean, deviation, cell.count, *theirs]
                )
    return buffer.getvalue()


def best(table: Sequence[Line], metric: str) -> float | None:
    """The best mean of a column; None where that has no sense."""
    means = [line.cells[metric].mean for line in table if line.cells[metric]]
    if len(means) < 2 or metric in ("num_parameters", "seconds_per_step"):
        return None
    return max(means) if metric in RISING else min(means)


def _texts(
    table: Sequence[Line], published: Published, bold: str, plus_minus: str
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells as text."""
    columns: list[tuple[Column, bool]] = []
    for column in COLUMNS:
        if any(line.cells[column.metric] for line in table):
            columns.append((column, False))
        if any(column.metric in published.get(line.method, {}) for line in table):
            columns.append((column, True))
    heads = ["method"] + [
        f"{column.head}, {column.theirs}" if is_theirs else column.head
        for column, is_theirs in columns
    ]

    def text(line: Line, column: Column, is_theirs: bool) -> str:
        def number(value: float) -> str:
            return f"{value:.{column.digits}f}"

        if is_theirs:
            theirs: Any = published.get(line.method, {}).get(column.metric)
            return f" {plus_minus} ".join(map(number, theirs)) if theirs else ""
        cell = line.cells[column.metric]
        if cell is None:
            return "-"
        mean = number(cell.mean)
        if number(cell.mean) == number(best(table, column.metric) or float("nan")):
            mean = bold.format(mean)
        if column.metric == "num_parameters":
            return mean
        spread = "" if cell.deviation is None else f" {plus_minus} "
        spread += "" if cell.deviation is None else number(cell.deviation)
        return f"{mean}{spread} ({cell.count})"

    return heads, [
        [line.name, *(text(line, *column) for column in columns)] for line in table
    ]
