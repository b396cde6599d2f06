"""The report of an experiment: tables, comparisons, figures and the page."""

import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax import configuration, files
from mtl_jax.data import pipeline
from mtl_jax.drawing import cases, curves
from mtl_jax.errors import UserError
from mtl_jax.evaluation import fovea_map, saliency
from mtl_jax.experiments import results
from mtl_jax.reporting import comparisons, page, published, runs, tables
from mtl_jax.reporting.page import Photograph, Reading
from mtl_jax.reporting.runs import Run
from mtl_jax.reporting.tables import NAMES

CONTENTS = (
    *(f"table-{r}.{s}" for r in ("model", "native") for s in ("md", "tex", "csv")),
    "comparisons.md",
    *(
        f"{f}.{s}"
        for f in ("roc", "learning_rates", "progress")
        for s in ("png", "pdf")
    ),
    *(f"{f}.{s}" for f in ("case", "fovea_map", "saliency") for s in ("png", "pdf")),
    "report.html",
)

_TITLES = {
    "cross_validation": "Cross-validation",
    "repeats": "Repeats with several seeds",
    "learning_rates": "Learning rates",
}
_SWEPT = {
    "auc": "best AUC",
    "dice_disc": "best disc Dice",
    "dice_cup": "best cup Dice",
    "fovea_error": "smallest fovea error, px",
    "loss_glaucoma": "smallest glaucoma loss",
    "loss_disc": "smallest disc loss",
    "loss_cup": "smallest cup loss",
    "loss_fovea": "smallest fovea loss",
}


def write(
    directory: pathlib.Path, *, data_dir: str | None = None, case: str | None = None
) -> tuple[pathlib.Path, str | None]:
    """Writes `report/` into an experiment's directory.

    `table-RESOLUTION.md`, `.tex` and `.csv`; `comparisons.md`; `roc` and `progress` as
    PNG and PDF. Of a study of learning rates `learning_rates` as PNG and PDF instead of
    these three, of a cross-validation that chose among several rates all four. Where
    the data set is at hand also `case`, `fovea_map` and `saliency`, as PNG and PDF, and
    `report.html`, which shows all of it.

    Args:
      directory: of the experiment.
      data_dir: where data sets are, if not where the runs had them.
      case: name of the image that these three show; None for the glaucoma that was
        given the lowest probability.

    Returns:
      The folder written; and, if the data set is not at hand, what is the matter.

    Raises:
      UserError: if it holds no experiment or no finished run, the data set has no such
        image, or what a run left is damaged.
    """
    directory = pathlib.Path(directory)
    kind, config, everything = _open(directory)
    rows = everything
    if kind == "cross_validation":
        rows = results.at_best_rates(everything)
    found = runs.labels(runs.of(rows))
    try:
        data = config.data
        builder = pipeline.open_dataset(data_dir or data.data_dir, data.dataset)
        table = pipeline.open_split(builder, "test")
        missing = _outdated(directory, found)
    except UserError as error:
        table, missing = None, f"{error} Or name its place by --data_dir."
    diagnoses = comparisons.diagnoses(
        {run: runs.image_rows(directory, run) for run in found}
    )
    output = directory / "report"
    with files.whole_directory(output, CONTENTS) as folder:
        theirs = published.of(kind, is_pretrained=bool(config.model.pretrained))
        shown = _write_tables(folder, rows, theirs)
        figures = {}
        if kind != "learning_rates":
            shown["Differences"] = _write_comparisons(folder, rows, diagnoses)
            figures |= _draw_roc(folder, diagnoses)
            figures |= _draw_progress(folder, directory, list(found))
        if kind == "learning_rates" or len(rows) < len(everything):
            # Folds after the first have one rate each.
            tried = [r for r in everything if r["fold"] in ("0", config.data.fold)]
            if panels := _panels(tried):
                curves.plot_learning_rates(panels, folder / "learning_rates")
                figures["Learning rates"] = folder / "learning_rates.png"
        if missing is None:
            photographs = runs.photographs(table)
            readings = {run: runs.readings(directory, run, table) for run in found}
            figures |= _draw_case(folder, directory, photographs, readings, case)
            facts = {
                "data set": builder.info.full_name,
                "test images": str(len(table)),
                "runs": str(len(found)),
                "experiment": directory.resolve().name,
            }
            content = page.Content(
                title=_TITLES.get(kind, kind),
                facts=facts,
                tables=shown,
                figures=figures,
                photographs=photographs,
                readings={name: readings[run] for run, name in found.items()},
            )
            page.write(folder / "report.html", content)
    return output, missing


def _open(
    directory: pathlib.Path,
) -> tuple[str, configuration.Config, list[results.Row]]:
    """Kind and config of an experiment, and the rows of its results."""
    try:
        record = json.loads((directory / "experiment.json").read_text())
        rows = results.read(directory)
        kind = record["kind"]
        config = configuration.from_json(json.dumps(record["config"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory} holds no results of an experiment ({error}); name the folder "
            "that scripts/cross_validate.py or its like wrote."
        ) from error
    if not rows:
        raise UserError(f"No run in {directory} is finished; there is nothing to tell.")
    return kind, config, rows


def _write_tables(
    folder: pathlib.Path, rows: Sequence[results.Row], theirs: published.Published
) -> dict[str, str]:
    """Writes the tables; returns them for the page, by what stands above them."""
    shown = {}
    for resolution in ("model", "native"):
        table = tables.lines(rows, resolution)
        # The paper's are at model resolution.
        beside = theirs if resolution == "model" else {}
        for suffix, text in (
            ("md", tables.markdown(table, beside)),
            ("tex", tables.latex(table, beside)),
            ("csv", tables.as_csv(table, beside)),
        ):
            files.write_text(folder / f"table-{resolution}.{suffix}", text)
        title = f"Test split at {resolution} resolution: mean ± standard deviation (n)"
        shown[title] = tables.html(table, beside)
    return shown


def _write_comparisons(
    folder: pathlib.Path,
    rows: Sequence[results.Row],
    diagnoses: Mapping[str, Sequence[comparisons.Diagnoses]],
) -> str:
    """Writes differences between methods; returns their table for the page."""
    lines = comparisons.lines(rows, diagnoses)
    text = tables.as_markdown(comparisons.HEADS, lines)
    files.write_text(folder / "comparisons.md", f"{text}\n{comparisons.EXPLANATION}\n")
    table = tables.as_html(comparisons.HEADS, lines)
    return f"{table}<p>{html.escape(comparisons.EXPLANATION)}</p>"


def _panels(rows: Sequence[results.Row]) -> dict[str, curves.Panel]:
    """Best validation metric and smallest loss by method and learning rate."""
    panels = {}
    for metric, title in _SWEPT.items():
        own = [
            row
            for row in rows
            if row["split"] == "validation" and row["metric"] == metric
        ]
        panel: dict[str, dict[float, list[float]]] = {}
        for row in sorted(own, key=lambda row: list(NAMES).index(row["method"])):
            values = panel.setdefault(NAMES[row["method"]], {})
            values.setdefault(row["learning_rate"], []).append(row["value"])
        if panel:
            panels[title] = panel
    return panels


def _outdated(directory: pathlib.Path, found: Mapping[Run, str]) -> str | None:
    """What to do about runs that were evaluated before there were outlines."""
    lacking = [run for run in found if not runs.has_outlines(directory, run)]
    if not lacking:
        return None
    return (
        f"{len(lacking)} of {len(found)} runs were evaluated by an older version "
        f"({found[lacking[0]]}, for one); evaluate them again by "
        f"scripts/evaluate.py --workdir={lacking[0].workdir(directory)}."
    )


def _draw_roc(
    folder: pathlib.Path, diagnoses: Mapping[str, Sequence[comparisons.Diagnoses]]
) -> dict[str, pathlib.Path]:
    if not diagnoses:
        return {}
    scores = {
        NAMES[method]: [(one.scores, one.labels) for one in several]
        for method, several in diagnoses.items()
    }
    curves.plot_mean_roc(scores, folder / "roc")
    return {"Glaucoma": folder / "roc.png"}


def _draw_progress(
    folder: pathlib.Path, directory: pathlib.Path, found: Sequence[Run]
) -> dict[str, pathlib.Path]:
    epochs: dict[str, dict[float, list[float]]] = {}
    minutes: dict[str, dict[float, list[float]]] = {}
    # Res34-Unet's second stage is validated around annotated discs.
    methods = {run.method for run in found} - {"two_stage"}
    for method in (name for name in NAMES if name in methods):
        own = [run for run in found if run.method == method]
        pace = np.mean([runs.minutes_per_epoch(directory, run) for run in own])
        panels = [(epochs, 1.0)]
        if np.isfinite(pace):
            panels.append((minutes, float(pace)))
        for run in own:
            for epoch, score in runs.scores(directory, run).items():
                for panel, unit in panels:
                    curve = panel.setdefault(NAMES[method], {})
                    curve.setdefault(epoch * unit, []).append(score)
    if not epochs:
        return {}
    curves.plot_progress(epochs, minutes, folder / "progress")
    return {"Training, by epochs and by time": folder / "progress.png"}


def _draw_case(
    folder: pathlib.Path,
    directory: pathlib.Path,
    photographs: Sequence[Photograph],
    readings: Mapping[Run, Sequence[Reading | None]],
    case: str | None,
) -> dict[str, pathlib.Path]:
    """Draws one photograph as two methods read it, and maps of it by one of them."""
    place = _choose(photographs, readings, case)
    photograph = photographs[place]
    title = _diagnosis(photograph)
    found, figures, names = {}, {}, runs.labels(list(readings))
    for run in _first(readings)[:2]:
        if reading := readings[run][place]:
            found[names[run]] = reading.marks, _numbers(reading)
    if found:
        cases.plot_case(
            photograph.pixels, title, photograph.truth, found, folder / "case"
        )
        figures[f"{photograph.image_id} as methods read it"] = folder / "case.png"
    return figures | _draw_maps(folder, directory, photograph, names)


def _draw_maps(
    folder: pathlib.Path,
    directory: pathlib.Path,
    photograph: Photograph,
    names: Mapping[Run, str],
) -> dict[str, pathlib.Path]:
    """Draws maps of a photograph's fovea and diagnosis, those there are.

    They are MTL-IO's where it has the task, or else the first method's that does.
    """
    figures, title = {}, _diagnosis(photograph)
    pixels, fovea_xy = photograph.pixels, photograph.truth.fovea_xy
    by_preference = sorted(_first(names), key=lambda run: run.method != "independent")
    for run in by_preference:
        maps = fovea_map.of_run(run.workdir(directory), pixels, fovea_xy)
        if maps is not None:
            panels = {f"predicted by {names[run]}": maps.predicted}
            if maps.target is not None:
                panels = {"target map": maps.target, **panels}
            cases.plot_fovea_maps(pixels, title, fovea_xy, panels, folder / "fovea_map")
            name = f"Map of its fovea by {names[run]}"
            figures[name] = folder / "fovea_map.png"
            break
    for run in by_preference:
        image = saliency.of_run(run.workdir(directory), pixels)
        if image is not None:
            cases.plot_saliency(pixels, image, title, folder / "saliency")
            name = f"Gradient map: what its diagnosis by {names[run]} hangs on"
            figures[name] = folder / "saliency.png"
            break
    return figures


def _first(found: Mapping[Run, Any]) -> list[Run]:
    """The first run of each method: those of the paper come first."""
    first = {run.method: run for run in reversed(list(found))}
    return [first[method] for method in NAMES if method in first]


def _choose(
    photographs: Sequence[Photograph],
    readings: Mapping[Run, Sequence[Reading | None]],
    case: str | None,
) -> int:
    """Index of the image that figures show."""
    names = [photograph.image_id for photograph in photographs]
    if case is not None:
        if case not in names:
            raise UserError(
                f"There is no test image {case!r}; it has, among others, "
                f"{', '.join(names[:3])}."
            )
        return names.index(case)

    def hardness(index: int) -> tuple[bool, float]:
        numbers = [
            several[index].numbers for several in readings.values() if several[index]
        ]
        is_glaucoma = photographs[index].glaucoma == 1
        for keys in (("probability",) * is_glaucoma, ("dice_disc", "dice_cup")):
            values = [n[k] for n in numbers for k in keys if n.get(k) is not None]
            if values:
                return is_glaucoma, -float(np.mean(values))
        return is_glaucoma, -np.inf

    return max(range(len(names)), key=hardness)


def _diagnosis(photograph: Photograph) -> str:
    truth = {None: "not annotated", 0: "healthy", 1: "glaucoma"}[photograph.glaucoma]
    return f"{photograph.image_id} ({truth})"


def _numbers(reading: Reading) -> str:
    """What stands below a method's panel, in two lines."""
    lines = (
        {"dice_disc": "disc {:.2f}", "dice_cup": "cup {:.2f}"},
        {"fovea_error": "fovea {:.1f} px", "probability": "P {:.2f}"},
    )
    return "\n".join(
        ", ".join(
            form.format(value)
            for name, form in line.items()
            if (value := reading.numbers.get(name)) is not None
        )
        for line in lines
    )
