"""Scores a network on a split of a data set, image by image."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mtl_jax import metrics
from mtl_jax.data import geometry, pipeline
from mtl_jax.data.schema import LABELS
from mtl_jax.errors import NotFinite
from mtl_jax.inference import vcdr
from mtl_jax.inference.postprocess import PAPER, PostProcessing
from mtl_jax.inference.prediction import (
    Prediction,
    cup_to_disc_ratio,
    interpret,
    with_cup,
)

Resolution = Literal["model", "native"]
Batch = dict[str, np.ndarray]
Logits = dict[str, np.ndarray]

# Maps a batch to the network's logits and losses, all in host memory.
Network = Callable[[Batch], tuple[Logits, dict[str, np.ndarray]]]


class Case(NamedTuple):
    """One image of a split, with its prediction and annotations.

    Attributes:
      index: index of the image in the split.
      details: details of the photograph, see `pipeline.Table.details`.
      model_size: (height, width) of the model image.
      prediction: the network's prediction.
      truth: annotations by task, or None. Masks have the prediction's size, the fovea
        is in pixels of the model image.
      losses: losses of the annotated tasks.
    """

    index: int
    details: dict[str, Any]
    model_size: tuple[int, int]
    prediction: Prediction
    truth: dict[str, Any]
    losses: dict[str, float]


def cases(
    network: Network,
    table: pipeline.Table,
    batch_size: int,
    classifier: vcdr.VcdrClassifier | None,
    resolution: Resolution = "model",
    post: PostProcessing = PAPER,
) -> Iterator[Case]:
    """Applies a network to every image of a split, in its order.

    Args:
      network: the network.
      table: the split.
      batch_size: images per batch.
      classifier: classifier on the vertical cup-to-disc ratio; None if not fitted.
      resolution: resolution at which masks are compared. At `model` resolution disc and
        cup are compared separately. At `native` resolution the cup counts as part of
        the disc, as in the mask with three values that REFUGE's program compares.
      post: conventions for the network's maps. The table's foveas must have the same
        `pixel_origin`.

    Raises:
      NotFinite: if the network's outputs are not finite.
    """
    for indices, batch in pipeline.evaluation_batches(table, batch_size):
        logits, losses = network(batch)
        _check_finite(logits, table)
        model_size = batch["image"].shape[1:3]
        for row, index in enumerate(indices):
            details = table.details(index)
            truth = truth_of(batch, row)
            is_native = resolution == "native"
            prediction = interpret(
                {task: values[row] for task, values in logits.items()},
                classifier,
                details["native_size"] if is_native else model_size,
                post,
            )
            if is_native:
                masks = table.native_masks(index)
                truth |= {k: m for k, m in masks.items() if truth[k] is not None}
                prediction, truth = as_one_mask(prediction, truth)
            annotated = {
                task: float(values[row])
                for task, values in losses.items()
                if truth[task] is not None
            }
            yield Case(index, details, model_size, prediction, truth, annotated)


def _check_finite(logits: Logits, table: pipeline.Table) -> None:
    """Refuses outputs that are not finite.

    With batch normalisation, training may continue although the running averages are
    not finite.
    """
    for task, values in logits.items():
        if not np.isfinite(values).all():
            raise NotFinite(
                f"The network's {task} output on {table.name} is not finite; lower the "
                "learning rate, or evaluate an earlier checkpoint."
            )


def as_one_mask(
    prediction: Prediction, truth: Mapping[str, Any]
) -> tuple[Prediction, dict[str, Any]]:
    """Adds the cup to the disc in both, as in one mask with three values."""
    disc = with_cup(prediction.disc, prediction.cup)
    true_disc = with_cup(truth["disc"], truth["cup"])
    return dataclasses.replace(prediction, disc=disc), {**truth, "disc": true_disc}


def score_split(
    network: Network,
    table: pipeline.Table,
    batch_size: int,
    classifier: vcdr.VcdrClassifier | None,
    resolution: Resolution = "model",
    post: PostProcessing = PAPER,
) -> list[dict[str, Any]]:
    """Returns a row of scores, see `score_case`, for each image; see `cases`."""
    return [
        score_case(case, post)
        for case in cases(network, table, batch_size, classifier, resolution, post)
    ]


def truth_of(batch: Batch, row: int) -> dict[str, Any]:
    """Returns the annotations of one image of a batch by task, or None."""
    labelled = dict(zip(LABELS, batch["has_label"][row], strict=True))
    values = {
        "glaucoma": int(batch["glaucoma"][row]),
        "disc": batch["disc_mask"][row],
        "cup": batch["cup_mask"][row],
        "fovea": batch["fovea_xy"][row],
    }
    return {name: values[name] if labelled[name] else None for name in LABELS}


def score_case(case: Case, post: PostProcessing = PAPER) -> dict[str, Any]:
    """Compares a prediction with its annotations.

    Args:
      case: a case that was made with the same `post`.
      post: conventions for maps and points.

    Returns:
      The prediction's numbers and scores; None where there is nothing to compare. The
      keys are those of `metrics.summarize`, and `loss_TASK` of each annotated task.
      Fovea coordinates are in pixels of the photograph, `fovea_error` is in pixels of
      the model image. If neither disc nor cup is found, the ratio of masks is 0, as in
      REFUGE's program.
    """
    details, model_size, prediction, truth = case[1:5]
    native_size = details["native_size"]
    ratio = prediction.vcdr
    if post.vcdr == "masks":
        ratio = cup_to_disc_ratio(prediction.disc, prediction.cup)
    row = {
        "image_id": details["image_id"],
        "glaucoma": truth["glaucoma"],
        "probability": prediction.probability,
        "probability_fc": prediction.probability_fc,
        "probability_vcdr": prediction.probability_vcdr,
        "vcdr": ratio,
        "vcdr_true": cup_to_disc_ratio(truth["disc"], truth["cup"], post.vcdr),
    }
    for name in ("disc", "cup"):
        predicted, true = getattr(prediction, name), truth[name]
        comparable = predicted is not None and true is not None
        row[f"dice_{name}"] = metrics.dice(predicted, true) if comparable else None
    names = ("fovea_x", "fovea_y", "fovea_error", "fovea_error_native")
    row |= dict.fromkeys(names)
    if prediction.fovea_xy is not None:
        native_xy = geometry.rescale_xy(
            prediction.fovea_xy, prediction.size, native_size, post.pixel_origin
        )
        row["fovea_x"], row["fovea_y"] = (float(value) for value in native_xy)
        if truth["fovea"] is not None:
            model_xy = geometry.rescale_xy(
                native_xy, native_size, model_size, post.pixel_origin
            )
            row["fovea_error"] = metrics.fovea_distance(model_xy, truth["fovea"])
            row["fovea_error_native"] = metrics.fovea_distance(
                native_xy, details["native_fovea_xy"]
            )
    return row | {f"loss_{task}": loss for task, loss in case.losses.items()}


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Computes the metrics of a split, and the mean loss of every annotated task."""
    summary = metrics.summarize(rows)
    names = sorted({k for row in rows for k in row if k.startswith("loss_")})
    for name in names:
        values = [row[name] for row in rows if name in row]
        summary[name] = float(np.mean(values))
        summary["num_images"][name] = len(values)
    return summary


def score_of(summary: Mapping[str, Any], name: str, image_size: int) -> float | None:
    """Computes the number, larger for better, that chooses the best checkpoint.

    Args:
      summary: result of `summarize`.
      name: `mean`, a metric, or `loss` (the sum over tasks).
      image_size: pixels a side of the model image.
    """
    if name == "mean":
        return metrics.validation_score(summary, image_size)
    if name == "loss":
        terms = [value for key, value in summary.items() if key.startswith("loss_")]
        return -sum(terms) if terms else None
    value = summary[name]
    return -value if name == "fovea_error" and value is not None else value


def fit_vcdr_classifier(
    table: pipeline.Table, C: float, post: PostProcessing = PAPER, chunk: int = 64
) -> vcdr.VcdrClassifier | None:
    """Fits the classifier on the true masks and diagnoses of the training split.

    Args:
      table: the training split.
      C: inverse strength of the penalty, see `vcdr.fit`.
      post: conventions for the ratio.
      chunk: images per batch.

    Returns:
      The classifier; None unless both classes have images with both masks.
    """
    ratios, labels = [], []
    for indices, batch in pipeline.evaluation_batches(table, min(chunk, len(table))):
        for row in range(len(indices)):
            truth = truth_of(batch, row)
            ratio = cup_to_disc_ratio(truth["disc"], truth["cup"], post.vcdr)
            if ratio is not None and truth["glaucoma"] is not None:
                ratios.append(ratio)
                labels.append(truth["glaucoma"])
    return vcdr.fit(ratios, labels, C)
