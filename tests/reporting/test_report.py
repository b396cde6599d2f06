"""The report of an experiment, from runs to the page in a browser."""

import csv
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from browser import Page
from PIL import Image
from training_fixtures import once

from mtl_jax import configuration, files, metrics
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.evaluation.calibrate import calibrate
from mtl_jax.experiments import plan, results
from mtl_jax.reporting import report

pytest_plugins = ("training_fixtures", "browser")

pytestmark = pytest.mark.slow

# The second run diagnoses only: it has no masks and no fovea.
METHODS, LABELS = ("independent", "vanilla"), ("MTL-IO", "Vanilla MTL")


@pytest.fixture(scope="module")
def experiment(tiny_run, glaucoma_run, shared_dir):
    """An experiment of two finished runs; nobody writes to it."""
    directory = shared_dir / "reported"
    with once(directory, shared_dir / "reported.lock") as first:
        if first:
            write_experiment(
                directory.with_suffix(".unfinished"), tiny_run, glaucoma_run
            )
            directory.with_suffix(".unfinished").rename(directory)
    return directory


def write_experiment(directory, *finished):
    rows = []
    for method, source in zip(METHODS, finished, strict=True):
        run = plan.Run(method, "official", 0, 1e-2, source.config)
        workdir = source.copy(directory / "runs" / run.name)
        if method == "independent":
            # It has a threshold of its own.
            calibrate(workdir, specificity=0.9)
        evaluations = [
            evaluate.evaluate(workdir, resolution=resolution)[1]
            for resolution in ("model", "native")
        ]
        rows += results.rows_of(run, workdir, evaluations)
    results.write(directory, rows)
    config = json.loads(configuration.to_json(finished[0].config))
    record = {"kind": "repeats", "config": config}
    files.write_json(directory / "experiment.json", record)


@pytest.fixture(scope="module")
def written(experiment, tmp_path_factory):
    """Its report."""
    directory = tmp_path_factory.mktemp("report") / "experiment"
    shutil.copytree(experiment, directory)
    # As if some test images were among the training images.
    runs = plan.run_name(METHODS[0], "official", 0, 1e-2)
    path = directory / "runs" / runs / "evaluation/test-model/metrics.json"
    found = json.loads(path.read_text())
    assert found["trained_on"] == []
    path.write_text(json.dumps({**found, "trained_on": list("uvwxyz")}))
    output, missing = report.write(directory)
    assert missing is None
    return output


def test_the_page_names_test_images_that_were_trained_on(written):
    text = re.sub(r"\s*\n\s*", "", (written / "report.html").read_text())
    line = "<dt>trained on test images</dt><dd>u, v, w, x, y and 1 more</dd>"
    assert line in text


@pytest.fixture(scope="module")
def lines(experiment):
    """By method, what its evaluation says of every image."""
    found = {}
    for method in METHODS:
        name = plan.run_name(method, "official", 0, 1e-2)
        path = experiment / "runs" / name / "evaluation/test-model/per_image.csv"
        with path.open(newline="") as file:
            found[method] = list(csv.DictReader(file))
    return found


def test_the_first_run_is_calibrated(lines, experiment):
    first, second = (rows[0] for rows in lines.values())
    assert first["probability"] != first["probability_uncalibrated"]
    assert "probability_uncalibrated" not in second
    panels = report._reliability(report._open(experiment))
    assert list(panels) == ["MTL-IO", "Vanilla MTL"]
    assert list(panels["MTL-IO"]) == ["average", "classifier", "vCDR"]
    # The second run has no masks.
    assert list(panels["Vanilla MTL"]) == ["average", "classifier"]
    for name, column in (
        ("calibrated", "probability"),
        ("uncalibrated", "probability_uncalibrated"),
    ):
        scores, labels = panels["MTL-IO"]["average"][name]
        rows = sorted(lines["independent"], key=lambda row: row["image_id"])
        assert [*scores] == [float(row[column]) for row in rows]
        assert [*labels] == [float(row["glaucoma"]) for row in rows]
    assert list(panels["Vanilla MTL"]["average"]) == ["uncalibrated"]


def number(line, metric):
    """A number of a line of `per_image.csv`; None where there is none."""
    if metric == "vcdr_error":
        ratios = line["vcdr"], line["vcdr_true"]
        return abs(float(ratios[0]) - float(ratios[1])) if all(ratios) else None
    return float(line[metric]) if line[metric] else None


def test_what_is_written(written):
    names = ["methods", "roc", "reliability", "progress"]
    names += ["case", "fovea_map", "saliency"]
    figures = {f"{name}.{s}" for name in names for s in ("png", "pdf")}
    assert {path.name for path in written.glob("[!.]*")} == figures | {
        *(f"table-{r}.{s}" for r in ("model", "native") for s in ("md", "csv", "tex")),
        "comparisons.md",
        "progress.csv",
        "report.html",
    }
    for name in figures:
        if name.endswith("png"):
            with Image.open(written / name) as image:
                assert np.ptp(np.asarray(image.convert("L"))) > 100


def test_how_many_runs_have_a_metric_is_with_every_mean(written):
    table = (written / "table-model.md").read_text().splitlines()
    heads = [cell.strip() for cell in table[0].split("|")]
    first, second = ([c.strip() for c in line.split("|")] for line in table[2:4])
    assert first[heads.index("disc Dice, %")].endswith("(1)")
    assert second[heads.index("disc Dice, %")] == "-"
    assert second[heads.index("AUC, %")].endswith("(1)")
    # The paper's own figures are marked as REFUGE's.
    assert first[heads.index("AUC, %, published (REFUGE)")] == "92.61 ± 0.38"


def test_the_page_shows_the_numbers_of_the_evaluations(browser, written, lines):
    shown = Page(browser, written / "report.html")
    assert shown.texts("h1") == ["Repeats with several seeds"]
    assert shown.texts("select[name=left] option")[:2] == [*LABELS]
    for side, method in zip(("left", "right"), METHODS, strict=True):
        cells = shown.numbers("#cards", side)
        assert set(cells) == {line["image_id"] for line in lines[method]}
        for line in lines[method]:
            for metric in metrics.at("page"):
                value, text = cells[line["image_id"]][metric]
                expected = number(line, metric)
                if expected is None:
                    assert (value, text) == ("", "–")
                else:
                    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_the_page_is_sorted_and_filtered_by_them(browser, written, lines):
    shown = Page(browser, written / "report.html")
    shown.choose("sort", "left:fovea_error")
    errors = {r["image_id"]: number(r, "fovea_error") for r in lines["independent"]}
    assert [errors[name] for name in shown.ids()] == sorted(errors.values())
    shown.choose("outcome", "missed")
    assert set(shown.ids()) == {
        line["image_id"]
        for line in lines["independent"]
        if line["glaucoma"] == "1" and line["diagnosis"] == "0"
    }


def test_the_case_shown_is_the_hardest_glaucoma(written, lines):
    chances = {}
    for line in (line for several in lines.values() for line in several):
        if line["glaucoma"] == "1":
            chances.setdefault(line["image_id"], []).append(float(line["probability"]))
    hardest = min(chances, key=lambda name: np.mean(chances[name]))
    assert f"{hardest} as methods read it" in (written / "report.html").read_text()


def test_the_maps_are_those_of_mtl_io(written):
    text = (written / "report.html").read_text()
    assert "Map of its fovea by MTL-IO<" in text
    assert "what its diagnosis by MTL-IO depends on<" in text


def test_without_a_network_for_the_fovea_there_is_no_map_of_it(experiment, tmp_path):
    directory = tmp_path / "experiment"
    shutil.copytree(experiment, directory)
    rows = results.read(directory)
    results.write(directory, [row for row in rows if row["method"] == "vanilla"])
    output, _ = report.write(directory)
    names = {path.name for path in output.iterdir()}
    assert "saliency.png" in names
    assert not any(name.startswith("fovea_map") for name in names)
    text = (output / "report.html").read_text()
    assert "what its diagnosis by Vanilla MTL depends on<" in text
    assert "Map of its fovea" not in text


def test_a_case_by_name_and_data_that_have_moved(experiment, lines, tmp_path):
    directory = tmp_path / "experiment"
    shutil.copytree(experiment, directory)
    name = lines["vanilla"][-1]["image_id"]
    output, _ = report.write(directory, case=name)
    assert f"{name} as methods read it" in (output / "report.html").read_text()
    with pytest.raises(
        UserError, match="no test image 'eye'.*choose one, such as test-"
    ):
        report.write(directory, case="eye")
    # The report there was is still there.
    assert (output / "report.html").exists()
    output, missing = report.write(directory, data_dir=str(tmp_path))
    assert "There is no data set" in missing
    assert (output / "table-model.md").exists()
    assert not (output / "report.html").exists()


@pytest.mark.parametrize("name", ["outlines.json", "per_image.csv"])
def test_what_is_damaged_or_missing_is_named(name, experiment, tmp_path):
    directory = tmp_path / "experiment"
    shutil.copytree(experiment, directory)
    run = plan.run_name("vanilla", "official", 0, 1e-2)
    path = directory / "runs" / run / "evaluation/test-model" / name
    path.write_text(path.read_text()[: path.stat().st_size // 2].rstrip("]}") + ",x")
    with pytest.raises(UserError, match=f"{re.escape(run)} is damaged"):
        report.write(directory)
    assert not (directory / "report").exists()
    path.unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read.*evaluate.py"):
        report.write(directory)


def test_somebody_s_notes_are_not_replaced(written, experiment, tmp_path):
    directory = tmp_path / "experiment"
    shutil.copytree(experiment, directory)
    shutil.copytree(written, directory / "report")
    notes = directory / "report" / "notes.md"
    notes.write_text("What I think of it.")
    with pytest.raises(UserError, match=r"something else.*\(notes.md, which"):
        report.write(directory)
    assert notes.read_text() == "What I think of it."


def test_a_study_of_learning_rates_is_of_the_validation_split():
    rows = [
        {
            "method": method,
            "learning_rate": rate,
            "split": split,
            "metric": metric,
            "value": value,
        }
        for method, rate, split, metric, value in (
            ("independent", 1e-3, "validation", "loss_cup", 0.2),
            ("independent", 1e-3, "validation", "auc", 0.8),
            ("independent", 1e-3, "validation", "auc", 0.9),
            ("single", 1e-4, "validation", "auc", 0.7),
            ("single", 1e-4, "test", "auc", 0.1),
            ("single", 1e-4, "validation", "vcdr_mae", 0.1),
        )
    ]
    panels = report._panels(pd.DataFrame(rows))
    found = {label: [*panel.itertuples(index=False)] for label, panel in panels.items()}
    assert found == {
        "best AUC": [("STL", 1e-4, 0.7), ("MTL-IO", 1e-3, 0.8), ("MTL-IO", 1e-3, 0.9)],
        "smallest cup loss": [("MTL-IO", 1e-3, 0.2)],
    }
    # The second of two stages is validated around annotated discs: it has no rows.
    assert report._panels(pd.DataFrame(rows[4:5])) == {}


def test_what_is_no_experiment(tmp_path):
    with pytest.raises(UserError, match="holds no results"):
        report.write(tmp_path)
