"""Writes the report of an experiment: tables, comparisons, figures and the page."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from mtl_jax import configuration, files, metrics, tasks
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate, fovea_map, saliency
from mtl_jax.experiments import results
from mtl_jax.inference import scoring
from mtl_jax.methods import METHODS, headings
from mtl_jax.reporting import comparisons, page, published, runs, tables
from mtl_jax.reporting.drawing import cases, curves, reliability
from mtl_jax.reporting.page import Photograph, Reading
from mtl_jax.reporting.runs import RunKey

_TITLES = {
    "cross_validation": "Cross-validation",
    "repeats": "Repeats with several seeds",
    "learning_rates": "Learning rates",
}
# PNG files by the heading that the page gives them.
Figures = dict[str, pathlib.Path]


class _Experiment(NamedTuple):
    """An experiment and the results of its runs.

    Attributes:
      directory: folder of the experiment.
      kind: kind of the experiment, such as `cross_validation`.
      config: config that its runs share.
      everything: the rows of `results.csv`.
      rows: the rows of the runs that the report compares.
      names: the labels of these runs.
      numbers: their numbers for the test images, see `runs.image_numbers`.
    """

    directory: pathlib.Path
    kind: str
    config: configuration.Config
    everything: pd.DataFrame
    rows: pd.DataFrame
    names: dict[RunKey, str]
    numbers: dict[RunKey, pd.DataFrame]


def write(
    directory: pathlib.Path, *, data_dir: str | None = None, case: str | None = None
) -> tuple[pathlib.Path, str | None]:
    """Writes `report/` into the folder of an experiment.

    The report has the tables `table-RESOLUTION.md`, `.tex` and `.csv`; the differences
    between methods, `comparisons.md`; and the figures `methods`, `roc`, `reliability`
    and `progress` as PNG and PDF. A study of learning rates has the figure
    `learning_rates` instead of the differences and the last three of these figures. A
    cross-validation that chose among several rates has all of them. If the data set is
    at hand, there are also the figures `case`, `fovea_map` and `saliency`, and
    `report.html`, which shows everything.

    Args:
      directory: folder of the experiment.
      data_dir: folder of the data sets, if it has moved since the runs.
      case: the test image in these three figures. By default it is the glaucoma with
        the lowest predicted probability.

    Returns:
      The folder of the report; and why it has no page, or None if it has one.

    Raises:
      UserError: there is no experiment or no finished run, an evaluation is damaged, or
        the test split has no such image.
    """
    experiment = _open(pathlib.Path(directory))
    data, test, missing = experiment.config.data, None, None
    try:
        builder = pipeline.open_dataset(data_dir or data.data_dir, data.dataset)
        test = builder.info.full_name, pipeline.open_split(builder, "test")
    except UserError as error:
        missing = f"{error} Or name its folder with --data_dir."
    output = experiment.directory / "report"
    with files.whole_directory(output) as folder:
        shown = _write_tables(folder, experiment)
        curves.plot_means(tables.summarize(experiment.rows), folder / "methods")
        figures: Figures = {"Methods": folder / "methods.png"}
        if experiment.kind != "learning_rates":
            diagnosed = comparisons.diagnoses(experiment.numbers)
            shown["Differences"] = _write_comparisons(folder, experiment, diagnosed)
            figures |= _draw_roc(folder, diagnosed)
            figures |= _draw_reliability(folder, experiment)
            figures |= _draw_progress(folder, experiment)
        figures |= _draw_learning_rates(folder, experiment)
        if test is not None:
            _write_page(folder, experiment, test, case, shown, figures)
    return output, missing


def _open(directory: pathlib.Path) -> _Experiment:
    path = directory / "experiment.json"
    try:
        record = files.parse_json(path.read_text())
        everything = results.read(directory)
        kind = record["kind"]
        config = configuration.from_json(json.dumps(record["config"]), path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory} holds no results of an experiment ({str(error).strip()}); "
            "name a folder that scripts/cross_validate.py or a similar one wrote."
        ) from error
    if not everything:
        raise UserError(
            f"No run in {directory} is finished, so there is nothing to report."
        )
    rows = everything
    if kind == "cross_validation":
        rows = results.at_best_rates(everything)
    everything, rows = pd.DataFrame(everything), pd.DataFrame(rows)
    names = runs.labels(runs.of(rows))
    numbers = {run: runs.image_numbers(directory, run) for run in names}
    return _Experiment(directory, kind, config, everything, rows, names, numbers)


def _write_tables(
    folder: pathlib.Path, experiment: _Experiment
) -> dict[str, page.Table]:
    """Writes the tables; returns them for the page."""
    shown = {}
    is_pretrained = bool(experiment.config.model.pretrained)
    theirs = published.of(experiment.kind, is_pretrained=is_pretrained)
    # The paper's results are at model resolution.
    for resolution, beside in (("model", theirs), ("native", {})):
        cells = tables.summarize(experiment.rows, resolution)
        for suffix, text in (
            ("md", tables.markdown(*tables.texts(cells, beside))),
            ("tex", tables.latex(cells, beside)),
            ("csv", tables.as_csv(cells, beside)),
        ):
            files.write_text(folder / f"table-{resolution}.{suffix}", text)
        title = f"Test split at {resolution} resolution: mean ± standard deviation (n)"
        bold = Markup("<b>{}</b>")
        shown[title] = page.Table(*tables.texts(cells, beside, bold))
    return shown


def _write_comparisons(
    folder: pathlib.Path,
    experiment: _Experiment,
    diagnosed: Mapping[RunKey, pd.DataFrame],
) -> page.Table:
    """Writes the differences between methods; returns them for the page."""
    table = comparisons.table(experiment.rows, diagnosed)
    text = tables.markdown(table.heads, table.rows)
    files.write_text(folder / "comparisons.md", f"{text}\n{table.note}\n")
    return table


def _draw_roc(
    folder: pathlib.Path, diagnosed: Mapping[RunKey, pd.DataFrame]
) -> Figures:
    if not diagnosed:
        return {}
    scores: dict[str, list[tuple[pd.Series, pd.Series]]] = {}
    for run in sorted(diagnosed, key=lambda run: list(METHODS).index(run.method)):
        images = diagnosed[run]
        own = images["probability"], images[metrics.DIAGNOSIS]
        scores.setdefault(METHODS[run.method].heading, []).append(own)
    curves.plot_mean_roc(scores, folder / "roc")
    return {"Glaucoma": folder / "roc.png"}


def _draw_reliability(folder: pathlib.Path, experiment: _Experiment) -> Figures:
    if not (panels := _reliability(experiment)):
        return {}
    reliability.plot_reliability(panels, folder / "reliability")
    return {"How reliable probabilities are": folder / "reliability.png"}


def _reliability(experiment: _Experiment) -> dict[str, dict[str, reliability.Panel]]:
    """Makes a row of diagrams for each method; a probability has a panel.

    The images of a method's runs are pooled. Runs that are calibrated have a curve of
    their own, and their probabilities before it belong to the other curve.
    """
    panels: dict[str, dict[str, reliability.Panel]] = {}
    for metric in metrics.every().values():
        if not metric.reliability:
            continue
        pooled: dict[str, dict[str, list[pd.DataFrame]]] = {}
        for run, images in experiment.numbers.items():
            score, label = metric.columns
            before = metrics.uncalibrated(score)
            names = {"uncalibrated": score}
            if before in images:
                names = {"uncalibrated": before, "calibrated": score}
            for name, column in names.items():
                own = images.reindex(columns=[column, label]).dropna()
                own.columns = ["score", "label"]
                curves_of = pooled.setdefault(METHODS[run.method].heading, {})
                curves_of.setdefault(name, []).append(own)
        for heading, parts in pooled.items():
            together = {name: pd.concat(own) for name, own in parts.items()}
            panel = {
                name: (own["score"], own["label"])
                for name, own in together.items()
                if len(own)
            }
            if panel:
                panels.setdefault(heading, {})[metric.reliability] = panel
    order = [METHODS[name].heading for name in METHODS]
    return {heading: panels[heading] for heading in order if heading in panels}


def _draw_progress(folder: pathlib.Path, experiment: _Experiment) -> Figures:
    panels = []
    for run in sorted(
        experiment.names, key=lambda run: list(METHODS).index(run.method)
    ):
        # The second stage of Res34-Unet is validated around annotated discs.
        if run.method != "two_stage":
            panel = runs.scores(experiment.directory, run).reset_index()
            panel["curve"] = METHODS[run.method].heading
            panel["pace"] = runs.minutes_per_epoch(experiment.directory, run)
            panels.append(panel)
    if not any(map(len, panels)):
        return {}
    epochs = pd.concat(panels).set_axis(["x", "y", "curve", "pace"], axis=1)
    # All runs of a method share one pace, so that their points have the same x.
    pace = epochs.groupby("curve")["pace"].transform("mean")
    minutes = epochs.assign(x=epochs["x"] * pace).dropna(subset="x")
    curves.plot_progress(epochs, minutes, folder / "progress")
    points = epochs.assign(minutes=epochs["x"] * pace)
    means = points.groupby(["curve", "x"], sort=False).agg(
        minutes=("minutes", "first"), score=("y", "mean"), n=("y", "size")
    )
    means.rename_axis(["method", "epoch"]).to_csv(folder / "progress.csv")
    return {"Training, by epochs and by time": folder / "progress.png"}


def _draw_learning_rates(folder: pathlib.Path, experiment: _Experiment) -> Figures:
    """Draws the results of all learning rates, if the experiment compared several."""
    everything = experiment.everything
    is_chosen = len(everything) > len(experiment.rows)
    if experiment.kind != "learning_rates" and not is_chosen:
        return {}
    # The folds after the first have one rate each.
    first = everything.fold.isin(["0", experiment.config.data.fold])
    panels = _panels(everything[first])
    if not panels:
        return {}
    curves.plot_learning_rates(panels, folder / "learning_rates")
    return {"Learning rates": folder / "learning_rates.png"}


def _panels(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Collects the best of each validation metric and loss, by method and rate."""
    rows = rows[rows.split == "validation"].sort_values(
        "method", key=lambda methods: methods.map(list(METHODS).index), kind="stable"
    )
    curve = rows.method.map(headings())
    points = pd.DataFrame({"curve": curve, "x": rows.learning_rate, "y": rows.value})
    labels = {
        name: f"{'best' if m.better == 'higher' else 'smallest'} {m.label}"
        for name, m in metrics.at("validation").items()
    }
    labels |= {f"loss_{name}": f"smallest {name} loss" for name in tasks.TASKS}
    panels = {label: points[rows.metric == name] for name, label in labels.items()}
    return {label: panel for label, panel in panels.items() if len(panel)}


def _write_page(
    folder: pathlib.Path,
    experiment: _Experiment,
    test: tuple[str, pipeline.Split],
    case: str | None,
    shown: Mapping[str, page.Table],
    figures: Figures,
) -> None:
    """Writes the page, and the figures that show a photograph.

    Args:
      folder: folder of the report.
      experiment: experiment to report.
      test: name of the data set, and its test split.
      case: see `write`.
      shown: tables by heading.
      figures: the figures drawn so far; this function adds the others.
    """
    data_set, split = test
    photographs = runs.photographs(split)
    readings = {
        run: runs.readings(experiment.directory, run, numbers, split)
        for run, numbers in experiment.numbers.items()
    }
    chosen = _choose(photographs, experiment.numbers, case)
    of_chosen = {run: own[chosen] for run, own in readings.items()}
    figures |= _draw_case(folder, experiment, photographs[chosen], of_chosen)
    disc = scoring.truth_of(split.take([chosen]), 0)["disc"]
    figures |= _draw_maps(folder, experiment, photographs[chosen], disc)
    seen = {
        name: None
        for run in experiment.names
        for name in runs.trained_on(experiment.directory, run)
    }
    content = page.Content(
        title=_TITLES.get(experiment.kind, experiment.kind),
        facts={
            "data set": data_set,
            "test images": str(len(split)),
            "runs": str(len(readings)),
            "experiment": experiment.directory.resolve().name,
            **({"trained on test images": evaluate.brief([*seen])} if seen else {}),
        },
        tables=shown,
        figures=figures,
        photographs=photographs,
        readings={experiment.names[run]: own for run, own in readings.items()},
    )
    page.write(folder / "report.html", content)


def _choose(
    photographs: Sequence[Photograph],
    numbers: Mapping[RunKey, pd.DataFrame],
    case: str | None,
) -> int:
    """Chooses the image for the figures: the one named, or the hardest glaucoma."""
    ids = [photograph.image_id for photograph in photographs]
    if case is not None:
        if case not in ids:
            raise UserError(
                f"There is no test image {case!r}; choose one, such as "
                f"{', '.join(ids[:3])}."
            )
        return ids.index(case)
    is_glaucoma = np.array([photograph.glaucoma == 1 for photograph in photographs])
    means = pd.concat(numbers.values()).groupby(level=0).mean().reindex(ids)
    # Without diagnosis or glaucoma, the hardest has the lowest Dice.
    masks = [f"dice_{task.name}" for task in tasks.of_kind("segmentation")]
    dice = means.reindex(columns=masks).mean(axis=1)
    ease = means["probability"].where(is_glaucoma).fillna(dice).fillna(np.inf)
    return int(np.lexsort([ease, ~is_glaucoma])[0])


def _draw_case(
    folder: pathlib.Path,
    experiment: _Experiment,
    photograph: Photograph,
    readings: Mapping[RunKey, Reading | None],
) -> Figures:
    """Draws a photograph as the first two methods read it."""
    found = {
        experiment.names[run]: (reading.marks, _numbers(reading))
        for run in _first_runs(experiment)[:2]
        if (reading := readings[run])
    }
    if not found:
        return {}
    pixels, truth = photograph.pixels, photograph.truth
    cases.plot_case(pixels, _title(photograph), truth, found, folder / "case")
    return {f"{photograph.image_id} as methods read it": folder / "case.png"}


def _draw_maps(
    folder: pathlib.Path,
    experiment: _Experiment,
    photograph: Photograph,
    disc: np.ndarray | None,
) -> Figures:
    """Draws the maps of a photograph's first point and first diagnosis.

    The network is MTL-IO's if that has the task, else the first method's that has it.
    Where it looks around the disc, it is shown the annotated one, a mask.
    """
    figures: Figures = {}
    pixels = photograph.pixels
    title = _title(photograph)
    first = _first_runs(experiment)
    first.sort(key=lambda run: run.method != "independent")
    networks = {experiment.names[r]: r.workdir(experiment.directory) for r in first}
    for name, workdir in networks.items():
        if maps := fovea_map.of_run(workdir, pixels, photograph.truth):
            panels = {f"predicted by {name}": maps.predicted}
            if maps.target is not None:
                panels = {"target map": maps.target, **panels}
            point = {k: xy for k, xy in photograph.truth.items() if k == maps.task}
            cases.plot_fovea_maps(pixels, title, point, panels, folder / "fovea_map")
            figures[f"Map of its {maps.task} by {name}"] = folder / "fovea_map.png"
            break
    for name, workdir in networks.items():
        image = saliency.of_run(workdir, pixels, disc)
        if image is not None:
            cases.plot_saliency(pixels, image, title, folder / "saliency")
            heading = f"Gradient map: what its diagnosis by {name} depends on"
            figures[heading] = folder / "saliency.png"
            break
    return figures


def _first_runs(experiment: _Experiment) -> list[RunKey]:
    """Lists the first run of each method, in the order of the tables."""
    first = {run.method: run for run in reversed(list(experiment.names))}
    return [first[method] for method in METHODS if method in first]


def _title(photograph: Photograph) -> str:
    truth = {None: "not annotated", 0: "healthy", 1: "glaucoma"}[photograph.glaucoma]
    return f"{photograph.image_id} ({truth})"


def _numbers(reading: Reading) -> str:
    """Formats the two lines of numbers below a method's panel."""
    masks, points = map(tasks.of_kind, ("segmentation", "localisation"))
    lines = (
        {f"dice_{task.name}": f"{task.name} {{:.2f}}" for task in masks},
        {f"{task.name}_error": f"{task.name} {{:.1f}} px" for task in points}
        | {"probability": "P {:.2f}"},
    )
    return "\n".join(
        ", ".join(
            form.format(value)
            for name, form in line.items()
            if (value := reading.numbers.get(name)) is not None
        )
        for line in lines
    )
