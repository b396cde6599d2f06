"""Draws ROC curves, single photographs, and the best, median and worst cases."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax import workdirs
from mtl_jax.data import geometry, pipeline
from mtl_jax.inference import scoring
from mtl_jax.inference.prediction import Prediction, interpret
from mtl_jax.reporting.drawing import overlay, roc

# Number of best cases, of median cases and of worst cases.
CASES = 3


def plot_roc(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws a ROC curve of each known probability; writes nothing without any."""
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
    """Scores the prediction of one image from 0 to 1; None without any annotation.

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
    known = sorted(pair for pair in qualities if pair[0] is not None)
    order = [index for _, index in reversed(known)]
    # If there are few images, each kind gets a third.
    count = min(CASES, max(len(order) // 3, 1))
    best, rest = order[:count], order[count:]
    worst, rest = rest[::-1][:count], rest[:-count]
    start = max((len(rest) - count) // 2, 0)
    return {"best": best, "median": rest[start : start + count], "worst": worst}


def draw_cases(
    folder: pathlib.Path,
    network: workdirs.TrainedNetwork,
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
    network: workdirs.TrainedNetwork, table: pipeline.Table, index: int, caption: str
) -> np.ndarray:
    """Draws one case at the photograph's own proportions."""
    batch = table.take([index] * network.batch_size)
    logits, _ = network(batch)
    details = table.details(index)
    native = details["native_size"]
    prediction = interpret(
        {task: values[0] for task, values in logits.items()},
        network.classifier,
        native,
        network.post,
    )
    truth = scoring.truth_of(batch, 0)
    masks = table.native_masks(index)
    return draw_prediction(
        geometry.resize_photograph(batch["image"][0], native),
        prediction,
        caption,
        true_disc=masks["disc"] if truth["disc"] is not None else None,
        true_cup=masks["cup"] if truth["cup"] is not None else None,
        true_fovea_xy=None if truth["fovea"] is None else details["native_fovea_xy"],
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
