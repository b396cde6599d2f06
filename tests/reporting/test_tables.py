import csv
import io

from mtl_jax.reporting import tables


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


ROWS = [
    *rows("independent", [0.9, 0.92, 0.94]),
    *rows("independent", [0.5, 0.5, 0.5], resolution="native"),
    *rows("single", [0.88, 0.89]),
    *rows("independent", [5.0], "fovea_error"),
    *rows("single", [6.0], "fovea_error"),
    *rows("independent", [17268036] * 3, "num_parameters", "", ""),
    *rows("single", [61213572], "num_parameters", "", ""),
    *rows("single", [7.0], "auc", "validation"),
]
PUBLISHED = {"independent": {"auc": (92.61, 0.38)}}


def test_markdown_by_hand():
    # The single-task networks come first, as in the paper; n is with every mean.
    assert tables.markdown(tables.lines(ROWS), PUBLISHED) == (
        "| method | #P, millions | AUC, % | AUC, %, published (REFUGE) "
        "| fovea error, px |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| STL | 61.2 | 88.50 ± 0.71 (2) |  | 6.00 (1) |\n"
        "| MTL-IO | 17.3 | **92.00** ± 2.00 (3) | 92.61 ± 0.38 | **5.00** (1) |\n"
    )


def test_the_other_resolution():
    table = tables.lines(ROWS, "native")
    assert "50.00 ± 0.00 (3)" in tables.markdown(table, {})
    assert "fovea" not in tables.markdown(table, {})


def test_latex_escapes_and_csv_has_the_numbers():
    table = tables.lines(ROWS)
    latex = tables.latex(table, PUBLISHED)
    assert r"AUC, \%" in latex
    assert r"\#P" in latex
    assert r"\textbf{92.00} $\pm$ 2.00 (3)" in latex
    assert latex.count(r"\\") == 3
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(table, PUBLISHED))))
    (line,) = [x for x in lines if x["method"] == "MTL-IO" and x["metric"] == "AUC, %"]
    assert float(line["mean"]) == 92
    assert line["num_runs"] == "3"
    assert line["published_mean"] == "92.61"


def test_learning_rates_have_lines_of_their_own():
    more = [{**row, "learning_rate": 1e-3} for row in rows("single", [0.7])]
    names = [line.name for line in tables.lines([*ROWS, *more])]
    assert names == [
        "STL, learning rate 0.0001",
        "STL, learning rate 0.001",
        "MTL-IO, learning rate 0.0001",
    ]
