"""Makes the paper's tables from `results.csv`, as Markdown, LaTeX and CSV."""

from collections.abc import Sequence

import pandas as pd

from mtl_jax import metrics
from mtl_jax.methods import METHODS, headings
from mtl_jax.reporting import published
from mtl_jax.reporting.published import Published


def summarize(rows: pd.DataFrame, resolution: metrics.Place = "model") -> pd.DataFrame:
    """Summarizes the runs of each method, at each of its learning rates.

    Args:
      rows: rows of `results.csv`.
      resolution: resolution of the test metrics.

    Returns:
      One row per cell of the table, line by line, with the columns `method`, `line`
      (the name of the method, with its learning rate where there are several),
      `metric`, `mean`, `std` (of the sample, NaN for a single run) and `count`, the
      number of runs. Means and deviations are in the unit of their metric.
    """
    shown = metrics.at(resolution)
    # Costs belong to no split and to both resolutions.
    cells = rows[
        rows.resolution.isin(["", resolution])
        & rows.split.isin(["", "test"])
        & rows.metric.isin(shown)
    ].copy()
    cells["value"] *= cells.metric.map({n: m.unit.factor for n, m in shown.items()})
    cells["line"] = cells.method.map(headings())
    if rows.learning_rate.nunique() > 1:
        cells["line"] += cells.learning_rate.map(", learning rate {:g}".format)
    # Categories keep their order when grouped.
    cells["method"] = pd.Categorical(cells.method, list(METHODS))
    cells["metric"] = pd.Categorical(cells.metric, list(shown))
    keys = ["method", "learning_rate", "line", "metric"]
    grouped = cells.groupby(keys, observed=True).value
    return grouped.agg(["mean", "std", "count"]).reset_index()


def texts(
    cells: pd.DataFrame,
    theirs: Published,
    bold: str = "**{}**",
    plus_minus: str = "±",
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Formats a table: mean ± standard deviation (number of runs), the best bold.

    Args:
      cells: see `summarize`.
      theirs: results of the paper, each in a column beside ours.
      bold: format of the best mean of a column.
      plus_minus: the sign.

    Returns:
      The heads of the columns, and the cells of every line.
    """
    methods = cells.groupby("line", sort=False).method.first()
    shown = {"method": list(methods.index)}
    for metric in metrics.every().values():
        own = cells[cells.metric == metric.name]
        number = f"{{:.{metric.unit.digits}f}}".format
        highlighted = number(best(own["mean"], metric))
        ours = dict.fromkeys(methods.index, "-")
        parts = (own[column] for column in ("line", "mean", "std", "count"))
        for line, mean, deviation, count in zip(*parts, strict=True):
            text = number(mean)
            text = bold.format(text) if text == highlighted else text
            if not metric.is_constant:
                text += f" {plus_minus} {number(deviation)}" if count > 1 else ""
                text += f" ({count})"
            ours[line] = text
        if len(own):
            shown[metric.column] = list(ours.values())
        beside = [theirs.get(name, {}).get(metric.name, ()) for name in methods]
        if any(beside):
            shown[f"{metric.column}, {published.heading(metric.name)}"] = [
                f" {plus_minus} ".join(map(number, each)) for each in beside
            ]
    return list(shown), list(zip(*shown.values(), strict=True))


def markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Writes any table as Markdown."""
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latex(cells: pd.DataFrame, theirs: Published) -> str:
    """Writes a table as LaTeX that needs the package booktabs."""
    heads, body = texts(cells, theirs, r"\textbf{{{}}}", r"$\pm$")
    layout = "l" + "r" * (len(heads) - 1)
    text = pd.DataFrame(body, columns=heads).to_latex(index=False, column_format=layout)
    return text.replace("%", r"\%").replace("#", r"\#")


def as_csv(cells: pd.DataFrame, theirs: Published) -> str:
    """Writes the numbers of a table as CSV, one line per method and metric."""
    beside = [
        (*theirs.get(method, {}).get(metric, ()), None, None)[:2]
        for method, metric in zip(cells.method, cells.metric, strict=True)
    ]
    heads = {name: metric.column for name, metric in metrics.every().items()}
    numbers = {
        "method": cells.line,
        "metric": cells.metric.map(heads),
        "mean": cells["mean"],
        "standard_deviation": cells["std"],
        "num_runs": cells["count"],
        "published_mean": [mean for mean, _ in beside],
        "published_standard_deviation": [deviation for _, deviation in beside],
    }
    return pd.DataFrame(numbers).to_csv(index=False)


def best(means: pd.Series, metric: metrics.Metric) -> float:
    """Returns the best mean of a metric; NaN where no mean is better than another."""
    if len(means) < 2 or metric.better is None:
        return float("nan")
    return means.max() if metric.better == "higher" else means.min()
