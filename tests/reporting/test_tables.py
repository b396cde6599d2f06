import csv
import io

import numpy as np
import pandas as pd
import pytest

from mtl_jax.reporting import published, tables


def rows(method, values, metric="auc", split="test", resolution="model"):
    return [
        {
            "method": method,
            "fold": str(fold),
            "seed": 0,
            "learning_rate": 1e-4,
            "split": split,
            "resolution": resolution,
            "metric": metric,
            "value": value,
        }
        for fold, value in enumerate(values)
    ]


ROWS = pd.DataFrame(
    [
        *rows("independent", [0.9, 0.92, 0.94]),
        *rows("independent", [0.5, 0.5, 0.5], resolution="native"),
        *rows("single", [0.88, 0.89]),
        *rows("independent", [5.0], "fovea_error"),
        *rows("single", [6.0], "fovea_error"),
        *rows("independent", [17268036] * 3, "num_parameters", "", ""),
        *rows("single", [61213572], "num_parameters", "", ""),
        *rows("single", [7.0], "auc", "validation"),
        *rows("single", [36.0], "fovea_error_native"),
        *rows("single", [6.0], "fovea_error", resolution="native"),
        *rows("single", [36.0], "fovea_error_native", resolution="native"),
    ]
)
PUBLISHED = {"independent": {"auc": (92.61, 0.38), "num_parameters": (17.2,)}}


def markdown(cells, theirs):
    return tables.markdown(*tables.texts(cells, theirs))


def test_summaries_by_hand():
    values = rows("single", [0.01, 0.02, 0.06]) + rows("vanilla", [0.03])
    several, one = tables.summarize(pd.DataFrame(values)).itertuples()
    assert (several.method, several.line, several.count) == ("single", "STL", 3)
    assert several.mean == pytest.approx(3)
    assert several.std == pytest.approx(7**0.5)
    assert (one.mean, one.count) == (3, 1)
    assert np.isnan(one.std)


def test_markdown_by_hand():
    # The single-task networks come first, as in the paper; n is with every mean.
    assert markdown(tables.summarize(ROWS), PUBLISHED) == (
        "| method | #P, millions | #P, millions, published (REFUGE) "
        "| AUC, % | AUC, %, published (REFUGE) | fovea error, px |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| STL | 61.2 |  | 88.50 ± 0.71 (2) |  | 6.00 (1) |\n"
        "| MTL-IO | 17.3 | 17.2 | **92.00** ± 2.00 (3) | 92.61 ± 0.38 "
        "| **5.00** (1) |\n"
    )


def test_the_other_resolution():
    cells = tables.summarize(ROWS, "native")
    assert "50.00 ± 0.00 (3)" in markdown(cells, {})
    # Of the fovea it is the distance in the photograph's own pixels.
    assert "fovea error, px" not in markdown(cells, {})
    assert "| fovea error, native px |" in markdown(cells, {})
    assert "| 36.00 (1) |" in markdown(cells, {})


def test_latex_escapes_and_csv_has_the_numbers():
    cells = tables.summarize(ROWS)
    latex = tables.latex(cells, PUBLISHED)
    assert r"AUC, \%" in latex
    assert r"\#P" in latex
    assert r"\textbf{92.00} $\pm$ 2.00 (3)" in latex
    assert latex.count(r"\\") == 3
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(cells, PUBLISHED))))
    (line,) = [x for x in lines if x["method"] == "MTL-IO" and x["metric"] == "AUC, %"]
    assert float(line["mean"]) == 92
    assert line["num_runs"] == "3"
    assert (line["published_mean"], line["published_standard_deviation"]) == (
        "92.61",
        "0.38",
    )
    cost = [x for x in lines if x["method"] == "MTL-IO" and x["metric"][0] == "#"]
    assert [x["published_mean"] for x in cost] == ["17.2"]
    assert [x["published_standard_deviation"] for x in cost] == [""]


def test_learning_rates_have_lines_of_their_own():
    more = pd.DataFrame(rows("single", [0.7])).assign(learning_rate=1e-3)
    cells = tables.summarize(pd.concat([ROWS, more]))
    assert list(cells.line.unique()) == [
        "STL, learning rate 0.0001",
        "STL, learning rate 0.001",
        "MTL-IO, learning rate 0.0001",
    ]


def test_published_figures_of_each_kind_of_experiment():
    assert published.of("learning_rates", is_pretrained=False) == {}
    repeats = published.of("repeats", is_pretrained=False)
    assert set(repeats) == {"single", "independent", "gradnorm", "pcgrad"}
    assert repeats["independent"]["num_parameters"] == (17.2,)
    assert repeats["independent"]["seconds_per_step"] == (0.557,)
    assert repeats["independent"]["auc"] == (92.61, 0.38)
    folds = published.of("cross_validation", is_pretrained=False)
    assert folds["independent"]["auc"] == (96.76, 0.96)
    assert set(folds["pcgrad"]) == {"num_parameters", "seconds_per_step"}
    pretrained = published.of("repeats", is_pretrained=True)
    assert set(pretrained) == {"single", "independent"}
    assert "seconds_per_step" not in pretrained["single"]
    assert pretrained["independent"]["auc"] == (96.15, 0.14)
