"""Makes the paper's tables from `results.csv`, as Markdown, LaTeX and CSV."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from mtl_jax.experiments.results import RISING
from mtl_jax.methods import METHODS, headings
from mtl_jax.reporting.published import Published


class Column(NamedTuple):
    """One column of numbers.

    Attributes:
      metric: its name in `results.csv`.
      head: what stands above it.
      factor: converts values of `results.csv` to the unit of the column.
      digits: after the point.
      split: of the rows it is made from.
      resolution: of the table that has the column; "" where both have it.
      theirs: follows the head, above the published figures.
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


def summarize(rows: pd.DataFrame, resolution: str = "model") -> pd.DataFrame:
    """Summarizes the runs of each method, at each of its learning rates.

    Args:
      rows: rows of `results.csv`.
      resolution: resolution of the test metrics.

    Returns:
      One row per cell of the table, line by line, with the columns `method`, `line`
      (the name of the method, with its learning rate where there are several),
      `metric`, `mean`, `std` (of the sample, NaN for a single run) and `count`, the
      number of runs. Means and deviations are in the unit of their `Column`.
    """
    columns = pd.DataFrame(COLUMNS)
    # Both keep what belongs to this resolution, or to none.
    own, shown = (
        each[each.resolution.isin(["", resolution])] for each in (rows, columns)
    )
    cells = own.merge(shown, on=["metric", "split"])
    cells["value"] *= cells.factor
    cells["line"] = cells.method.map(headings())
    if rows.learning_rate.nunique() > 1:
        cells["line"] += cells.learning_rate.map(", learning rate {:g}".format)
    # Categories keep their order when grouped.
    cells["method"] = pd.Categorical(cells.method, list(METHODS))
    cells["metric"] = pd.Categorical(cells.metric, columns.metric)
    keys = ["method", "learning_rate", "line", "metric"]
    grouped = cells.groupby(keys, observed=True).value
    return grouped.agg(["mean", "std", "count"]).reset_index()


def texts(
    cells: pd.DataFrame,
    published: Published,
    bold: str = "**{}**",
    plus_minus: str = "±",
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Formats a table: mean ± standard deviation (number of runs), the best bold.

    Args:
      cells: see `summarize`.
      published: results of the paper, each in a column beside ours.
      bold: format of the best mean of a column.
      plus_minus: the sign.

    Returns:
      The heads of the columns, and the cells of every line.
    """
    methods = cells.groupby("line", sort=False).method.first()
    shown = {"method": list(methods.index)}
    for column in COLUMNS:
        own = cells[cells.metric == column.metric]
        number = f"{{:.{column.digits}f}}".format
        best = number(_best(own["mean"], column.metric))
        ours = dict.fromkeys(methods.index, "-")
        for cell in own.itertuples():
            mean = number(cell.mean)
            text = bold.format(mean) if mean == best else mean
            if column.metric != "num_parameters":
                text += f" {plus_minus} {number(cell.std)}" if cell.count > 1 else ""
                text += f" ({cell.count})"
            ours[cell.line] = text
        if len(own):
            shown[column.head] = list(ours.values())
        theirs = [published.get(name, {}).get(column.metric, ()) for name in methods]
        if any(theirs):
            shown[f"{column.head}, {column.theirs}"] = [
                f" {plus_minus} ".join(map(number, each)) for each in theirs
            ]
    return list(shown), list(zip(*shown.values(), strict=True))


def markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Writes any table as Markdown."""
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latex(cells: pd.DataFrame, published: Published) -> str:
    """Writes a table as LaTeX that needs the package booktabs."""
    heads, body = texts(cells, published, r"\textbf{{{}}}", r"$\pm$")
    layout = "l" + "r" * (len(heads) - 1)
    text = pd.DataFrame(body, columns=heads).to_latex(index=False, column_format=layout)
    return text.replace("%", r"\%").replace("#", r"\#")


def as_csv(cells: pd.DataFrame, published: Published) -> str:
    """Writes the numbers of a table as CSV, one line per method and metric."""
    theirs = [
        (*published.get(method, {}).get(metric, ()), None, None)[:2]
        for method, metric in zip(cells.method, cells.metric, strict=True)
    ]
    heads = {column.metric: column.head for column in COLUMNS}
    numbers = {
        "method": cells.line,
        "metric": cells.metric.map(heads),
        "mean": cells["mean"],
        "standard_deviation": cells["std"],
        "num_runs": cells["count"],
        "published_mean": [mean for mean, _ in theirs],
        "published_standard_deviation": [deviation for _, deviation in theirs],
    }
    return pd.DataFrame(numbers).to_csv(index=False)


def _best(means: pd.Series, metric: str) -> float:
    """The best mean of a column; NaN where no mean is better than another."""
    if len(means) < 2 or metric in ("num_parameters", "seconds_per_step"):
        return float("nan")
    return means.max() if metric in RISING else means.min()
