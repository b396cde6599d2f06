"""Evaluation of a trained network on a split: numbers, table, curves, pictures."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax import files
from mtl_jax.data import geometry, pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import scoring, trained
from mtl_jax.evaluation.prediction import Prediction, interpret
from mtl_jax.reporting import overlay, roc

# Pictures of each of the best, median and worst cases.
CASES = 3

CONTENTS = ("metrics.json", "per_image.csv", "roc.png", "overlays")


def evaluate(
    workdir: pathlib.Path,
    *,
    split: str = "test",
    resolution: scoring.Resolution = "model",
    checkpoint: str = "best",
    data_dir: str | None = None,
    dataset: str | None = None,
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Scores a checkpoint.

    Writes `metrics.json`, `per_image.csv`, `roc.png` and `overlays/` into the folder
    `evaluation/SPLIT-RESOLUTION` of the workdir (with the name of the data set, where
    that is not the run's own).

    Args:
      workdir: of the run.
      split: of the data set.
      resolution: at which masks are compared, `model` or `native`.
      checkpoint: `best`, `latest` or a step.
      data_dir: where data sets are, if not where the run had them.
      dataset: to evaluate on, if not the run's own.

    Returns:
      The folder, and what `metrics.json` holds.

    Raises:
      UserError: if the checkpoint, the data set or the split cannot be had.
    """
    network = trained.load(workdir, checkpoint)
    own = network.config.data
    builder = pipeline.open_dataset(data_dir or own.data_dir, dataset or own.dataset)
    if (side := pipeline.image_size(builder)) != network.image_size:
        raise UserError(
            f"{builder.info.full_name} has images of {side} pixels a side, the network "
            f"was trained on {network.image_size}; build the data set with "
            f"--image_size={network.image_size}."
        )
    table = pipeline.Table(builder, split)
    rows = scoring.score_split(
        network, table, network.batch_size, network.classifier, resolution
    )
    metrics = {
        **scoring.summarize(rows),
        "num_parameters": network.num_parameters,
        "seconds_per_step": network.metadata["seconds_per_step"],
        "dataset": builder.info.full_name,
        "split": split,
        "resolution": resolution,
        "checkpoint": network.checkpoint.name,
    }
    name = f"{split}-{resolution}"
    if dataset and dataset != own.dataset:
        name = f"{dataset.replace('/', '-')}-{name}"
    output = pathlib.Path(workdir) / "evaluation" / name
    with files.whole_directory(output, CONTENTS) as folder:
        files.write_json(folder / "metrics.json", metrics)
        write_csv(folder / "per_image.csv", rows)
        plot_roc(folder / "roc.png", rows)
        _draw_cases(folder / "overlays", network, table, rows)
    return output, metrics


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV, one column for every key in any of them; None is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def plot_roc(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the ROC curves of the probabilities there are; nothing if there is none."""
    names = {
        "probability": "average",
        "probability_fc": "classifier",
        "probability_vcdr": "vCDR",
    }
    curves = {}
    for key, label in names.items():
        known = [r for r in rows if None not in (r[key], r["glaucoma"])]
        if known:
            curves[label] = ([r[key] for r in known], [r["glaucoma"] for r in known])
    if curves:
        roc.plot_roc(curves, path)


def quality(row: Mapping[str, Any], image_size: int) -> float | None:
    """How well one image was read, from 0 to 1; None if nothing is annotated.

    The mean of both Dice, one minus the fovea error relative to the width, and the
    probability given to the true diagnosis, those there are.
    """
    parts = [row["dice_disc"], row["dice_cup"]]
    if row["fovea_error"] is not None:
        parts.append(1 - row["fovea_error"] / image_size)
    if None not in (row["glaucoma"], row["probability"]):
        parts.append(1 - abs(row["glaucoma"] - row["probability"]))
    parts = [part for part in parts if part is not None]
    return float(np.mean(parts)) if parts else None


def choose_cases(
    rows: Sequence[Mapping[str, Any]], image_size: int
) -> dict[str, list[int]]:
    """Indices of the best, median and worst rows by `quality`, no row twice."""
    qualities = [(quality(row, image_size), i) for i, row in enumerate(rows)]
    order = [i for q, i in sorted(p for p in qualities if p[0] is not None)]
    worst, rest = order[:CASES], order[CASES:]
    best, rest = rest[-CASES:][::-1], rest[:-CASES]
    start = max((len(rest) - CASES) // 2, 0)
    return {"best": best, "median": rest[start : start + CASES], "worst": worst}


def _draw_cases(
    folder: pathlib.Path,
    network: trained.TrainedNetwork,
    table: pipeline.Table,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Draws best, median and worst cases, and all of them on one sheet."""
    folder.mkdir()
    pictures = []
    for kind, indices in choose_cases(rows, network.image_size).items():
        for rank, index in enumerate(indices, start=1):
            picture = _draw_case(
                network, table, index, f"{kind}: {_caption(rows[index])}"
            )
            pictures.append(picture)
            Image.fromarray(picture).save(folder / f"{kind}_{rank}.png")
    if pictures:
        sheet = overlay.contact_sheet(pictures, columns=CASES)
        Image.fromarray(sheet).save(folder / "cases.png")


def _draw_case(
    network: trained.TrainedNetwork, table: pipeline.Table, index: int, caption: str
) -> np.ndarray:
    """One case at the photograph's own proportions."""
    batch = table.take([index] * network.batch_size)
    logits, _ = network(batch)
    native = table.details(index)["native_size"]
    prediction = interpret(
        {task: values[0] for task, values in logits.items()},
        network.classifier,
        native,
    )
    truth = scoring.truth_of(batch, 0)
    masks = table.native_masks(index)
    fovea_xy = truth["fovea"]
    if fovea_xy is not None:
        fovea_xy = geometry.rescale_xy(fovea_xy, batch["image"].shape[1:3], native)
    return draw_prediction(
        geometry.resize_photograph(batch["image"][0], native),
        prediction,
        caption,
        true_disc=masks["disc"] if truth["disc"] is not None else None,
        true_cup=masks["cup"] if truth["cup"] is not None else None,
        true_fovea_xy=fovea_xy,
    )


def draw_prediction(
    photograph: np.ndarray, prediction: Prediction, caption: str, **truth: Any
) -> np.ndarray:
    """Draws a prediction of the photograph's size on it; see `overlay.draw`."""
    return overlay.draw(
        photograph,
        disc=prediction.disc,
        cup=prediction.cup,
        fovea_xy=prediction.fovea_xy,
        caption=caption,
        **truth,
    )


def _caption(row: Mapping[str, Any]) -> str:
    parts = [str(row["image_id"])]
    if row["probability"] is not None:
        truth = {None: "", 0: " (healthy)", 1: " (glaucoma)"}[row["glaucoma"]]
        parts.append(f"P(glaucoma) {row['probability']:.2f}{truth}")
    for name in ("disc", "cup"):
        if row[f"dice_{name}"] is not None:
            parts.append(f"{name} Dice {row[f'dice_{name}']:.2f}")
    if row["fovea_error_native"] is not None:
        parts.append(f"fovea off by {row['fovea_error_native']:.1f} px")
    return ", ".join(parts)
