"""Draws ROC curves, single photographs, and the best, median and worst cases."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mtl_jax import metrics, tasks, workdirs
from mtl_jax.data import field_of_view, geometry, pipeline
from mtl_jax.inference import averaging, scoring
from mtl_jax.reporting.drawing import overlay, roc

# Number of best cases, of median cases and of worst cases.
CASES = 3


def plot_roc(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws a ROC curve of each known probability; writes nothing without any."""
    curves = {}
    for metric in metrics.every().values():
        if metric.curve:
            scores, labels = metrics.columns(rows, *metric.columns)
            if len(scores):
                curves[metric.curve] = scores, labels
    if curves:
        roc.plot_roc(curves, path)


def quality(row: Mapping[str, Any], image_size: int) -> float | None:
    """Scores the prediction of one image from 0 to 1; None without any annotation.

    It is the mean of what can be computed: each Dice, one minus each error relative to
    the width, and each probability of the true class.
    """
    shown = [m for m in metrics.at("page").values() if m.task and m.better]
    parts = metrics.shares(row, shown, image_size)
    for task in tasks.of_kind("classification"):
        probability, truth = row[metrics.probability_of(task)], row[task.name]
        if None not in (probability, truth):
            parts.append(1 - abs(truth - probability))
    return float(np.mean(parts)) if parts else None


def choose_cases(
    rows: Sequence[Mapping[str, Any]], image_size: int
) -> dict[str, list[int]]:
    """Chooses indices of the best, median and worst rows by `quality`, no row twice."""
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
    split: pipeline.Split,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Draws best, median and worst cases, and all of them on one sheet."""
    folder.mkdir()
    pictures = []
    for kind, indices in choose_cases(rows, network.image_size).items():
        for rank, index in enumerate(indices, start=1):
            picture = _draw_case(
                network, split, index, f"{kind}: {_caption(rows[index])}"
            )
            pictures.append(picture)
            Image.fromarray(picture).save(folder / f"{kind}_{rank}.png")
    if pictures:
        sheet = overlay.contact_sheet(pictures, columns=CASES)
        Image.fromarray(sheet).save(folder / "cases.png")


def _draw_case(
    network: workdirs.TrainedNetwork, split: pipeline.Split, index: int, caption: str
) -> np.ndarray:
    """Draws one case at the photograph's own proportions."""
    batch = split.take([index] * network.batch_size)
    frame = split.details(index)["frame"]
    prediction = averaging.read(
        network.outputs(batch),
        0,
        network.classifier,
        frame,
        network.post,
        network.calibration,
        field=field_of_view.limits(batch["image"][0], frame, split.shape),
    )
    truth = scoring.truth_of(batch, 0)
    return overlay.draw(
        geometry.picture_to_native(batch["image"][0], frame),
        prediction.found,
        scoring.native_truth(split, index, truth, "segmentation", "localisation"),
        caption,
    )


def _caption(row: Mapping[str, Any]) -> str:
    return ", ".join(
        [
            str(row["image_id"]),
            *(
                text
                for kind, describe in _DESCRIBE.items()
                for task in tasks.of_kind(kind)
                if (text := describe(task.name, row))
            ),
        ]
    )


def _describe_class(name: str, row: Mapping[str, Any]) -> str:
    probability = row[metrics.probability_of(tasks.TASKS[name])]
    if probability is None:
        return ""
    negative = "healthy" if name == metrics.DIAGNOSIS else f"no {name}"
    truth = {None: "", 0: f" ({negative})", 1: f" ({name})"}[row[name]]
    return f"P({name}) {probability:.2f}{truth}"


def _describe_mask(name: str, row: Mapping[str, Any]) -> str:
    dice = row[f"dice_{name}"]
    return "" if dice is None else f"{name} Dice {dice:.2f}"


def _describe_point(name: str, row: Mapping[str, Any]) -> str:
    error = row[f"{name}_error_native"]
    return "" if error is None else f"{name} off by {error:.1f} px"


_DESCRIBE: dict[tasks.Kind, Callable[[str, Mapping[str, Any]], str]] = {
    "classification": _describe_class,
    "segmentation": _describe_mask,
    "localisation": _describe_point,
}
