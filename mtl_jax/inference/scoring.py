"""Scores a network on a split of a data set, image by image."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mtl_jax import metrics, tasks
from mtl_jax.annotations import ANNOTATIONS, LABELS
from mtl_jax.data import batching, field_of_view, geometry, pipeline
from mtl_jax.errors import NotFinite
from mtl_jax.inference import averaging, vcdr
from mtl_jax.inference.averaging import Batch, Logits, Network
from mtl_jax.inference.calibration import Calibration
from mtl_jax.inference.postprocess import PAPER, PostProcessing
from mtl_jax.inference.prediction import (
    Found,
    Prediction,
    cup_to_disc_ratio,
    with_cup,
)

Resolution = Literal["model", "native"]


class Case(NamedTuple):
    """One image of a split, with its prediction and annotations.

    Attributes:
      index: index of the image in the split.
      details: details of the photograph, see `pipeline.Split.details`.
      model_size: (height, width) of the model image.
      frame: what it shows of the image that masks are compared in: of the photograph,
        or of itself.
      prediction: the network's prediction.
      truth: annotations by task, or None. Masks have the prediction's size, points are
        in pixels of the model image.
      native_points: annotated points by task, in pixels of the photograph.
      losses: losses of the annotated tasks.
    """

    index: int
    details: dict[str, Any]
    model_size: tuple[int, int]
    frame: geometry.Frame
    prediction: Prediction
    truth: Found
    native_points: Found
    losses: dict[str, float]


def cases(
    network: Network,
    split: pipeline.Split,
    batch_size: int,
    classifier: vcdr.VcdrClassifier | None,
    resolution: Resolution = "model",
    post: PostProcessing = PAPER,
    calibration: Calibration | None = None,
) -> Iterator[Case]:
    """Applies a network to every image of a split, in its order.

    Args:
      network: the network.
      split: split of the data set.
      batch_size: images per batch.
      classifier: classifier on the vertical cup-to-disc ratio; None if not fitted.
      resolution: resolution at which masks are compared. At `model` resolution disc and
        cup are compared separately. At `native` resolution the cup counts as part of
        the disc, as in the mask with three values that REFUGE's program compares.
      post: conventions for the network's maps. The split's foveas must have the same
        `pixel_origin`.
      calibration: calibration of the probabilities of glaucoma; None for none.

    Raises:
      NotFinite: if the network's outputs are not finite.
    """
    for indices, batch in batching.evaluation_batches(split, batch_size):
        outputs = averaging.outputs_of(network, batch)
        for logits in (outputs.logits, *outputs.members):
            _check_finite(logits, split)
        model_size = batch["image"].shape[1:3]
        for row, index in enumerate(indices):
            details = split.details(index)
            truth = truth_of(batch, row)
            is_native = resolution == "native"
            frame = details["frame"] if is_native else geometry.whole(model_size)
            prediction = averaging.read(
                outputs,
                row,
                classifier,
                frame,
                post,
                calibration,
                details["frame"],
                field_of_view.limits(
                    batch["image"][row], details["frame"], split.shape
                ),
            )
            native = native_truth(split, index, truth, "localisation")
            if is_native:
                truth |= native_truth(split, index, truth, "segmentation")
                prediction, truth = as_one_mask(prediction, truth)
            annotated = {
                task: float(values[row])
                for task, values in outputs.losses.items()
                if truth[task] is not None
            }
            yield Case(
                index, details, model_size, frame, prediction, truth, native, annotated
            )


def _check_finite(logits: Logits, split: pipeline.Split) -> None:
    """Refuses outputs that are not finite.

    With batch normalisation, training may continue although the running averages are
    not finite.
    """
    for task, values in logits.items():
        if not np.isfinite(values).all():
            raise NotFinite(
                f"The network's {task} output on {split.name} is not finite; lower the "
                "learning rate, or evaluate an earlier checkpoint."
            )


def as_one_mask(prediction: Prediction, truth: Found) -> tuple[Prediction, Found]:
    """Adds the cup to the disc in both, as in one mask with three values."""
    found = with_cup(prediction.found)
    return dataclasses.replace(prediction, found=found), with_cup(truth)


def score_split(
    network: Network,
    split: pipeline.Split,
    batch_size: int,
    classifier: vcdr.VcdrClassifier | None,
    resolution: Resolution = "model",
    post: PostProcessing = PAPER,
    calibration: Calibration | None = None,
) -> list[dict[str, Any]]:
    """Returns a row of scores, see `score_case`, for each image; see `cases`."""
    return [
        score_case(case, post)
        for case in cases(
            network, split, batch_size, classifier, resolution, post, calibration
        )
    ]


def truth_of(batch: Batch, row: int) -> dict[str, Any]:
    """Returns the annotations of one image of a batch by task, or None."""
    labelled = dict(zip(LABELS, batch["has_label"][row], strict=True))
    annotations = {key: batch[key][row] for key in ANNOTATIONS.values()}
    return {
        task.name: _truth(task, annotations)
        if all(labelled[label] for label in task.labels)
        else None
        for task in tasks.TASKS.values()
    }


def native_truth(
    split: pipeline.Split, index: int, truth: Found, *kinds: tasks.Kind
) -> dict[str, Any]:
    """Returns the annotations of one image at the photograph's size.

    Args:
      split: split of the data set.
      index: index of the image.
      truth: its annotations, see `truth_of`; a task that has None is left out.
      kinds: kinds of the tasks to return.
    """
    annotated = [
        task
        for task in tasks.TASKS.values()
        if task.kind in kinds and truth[task.name] is not None
    ]
    labels = {label for task in annotated for label in task.labels}
    annotations = split.native(index, labels)
    return {task.name: _truth(task, annotations) for task in annotated}


def _truth(task: tasks.Task, annotations: Mapping[str, Any]) -> Any:
    target = task.target(annotations)
    return int(target) if task.kind == "classification" else np.asarray(target)


def score_case(case: Case, post: PostProcessing = PAPER) -> dict[str, Any]:
    """Compares a prediction with its annotations.

    Args:
      case: a case that was made with the same `post`.
      post: conventions for maps and points.

    Returns:
      The prediction's numbers and scores; None where there is nothing to compare. The
      keys are `image_id`, the derived quantities, the columns that every registered
      task has by its kind, the spread over the members of an average, and `loss_TASK`
      of each annotated task. If the probabilities are calibrated, there are also the
      `uncalibrated` ones; and `manifest_NAME` of a manifest's other columns. If neither
      disc nor cup is found, the ratio of masks is 0, as in REFUGE's program.
    """
    prediction, truth = case.prediction, case.truth
    ratio, diagnosis = prediction.vcdr, prediction.diagnosis
    if post.vcdr == "masks":
        ratio = cup_to_disc_ratio(prediction.found)
    row = {
        "image_id": case.details["image_id"],
        metrics.DIAGNOSIS: truth[metrics.DIAGNOSIS],
        "diagnosis": None if diagnosis is None else int(diagnosis),
        "probability": prediction.probability,
        "probability_fc": prediction.probability_fc,
        "probability_vcdr": prediction.probability_vcdr,
        "vcdr": ratio,
        "vcdr_true": cup_to_disc_ratio(truth, post.vcdr),
    }
    for task in tasks.TASKS.values():
        row |= _SCORE[task.kind](task, case, post)
    row |= {name: prediction.spread.get(name) for name in averaging.spread_columns()}
    row |= {
        metrics.uncalibrated(name): value
        for name, value in prediction.uncalibrated.items()
    }
    extra = case.details.get("extra", {})
    row |= {f"manifest_{name}": text for name, text in extra.items()}
    return row | {f"loss_{name}": loss for name, loss in case.losses.items()}


def _score_class(
    task: tasks.Task, case: Case, post: PostProcessing
) -> dict[str, float | None]:
    if task.name == metrics.DIAGNOSIS:
        return {}
    probability = case.prediction.found.get(task.name)
    return {
        task.name: case.truth[task.name],
        metrics.probability_of(task): probability,
    }


def _score_mask(
    task: tasks.Task, case: Case, post: PostProcessing
) -> dict[str, float | None]:
    predicted, true = case.prediction.found.get(task.name), case.truth[task.name]
    comparable = predicted is not None and true is not None
    return {f"dice_{task.name}": metrics.dice(predicted, true) if comparable else None}


def _score_point(
    task: tasks.Task, case: Case, post: PostProcessing
) -> dict[str, float | None]:
    """Returns the point in pixels of the photograph, and its error in both images.

    A point that is not reported has an error all the same, that of its centre of mass.
    A network that reports fewer points therefore has no smaller mean error, and
    `TASK_found` tells which are reported.
    """
    keys = [f"{task.name}_{key}" for key in ("found", "x", "y", "error")]
    keys.append(f"{task.name}_error_native")
    predicted, true = case.prediction.point(task.name), case.truth[task.name]
    if predicted is None:
        return dict.fromkeys(keys)
    is_found = case.prediction.found[task.name] is not None
    size, origin = case.model_size, post.pixel_origin
    model = geometry.xy_to_model(predicted, case.frame, size, origin)
    native = geometry.xy_to_native(model, case.details["frame"], size, origin)
    errors: tuple[float | None, float | None] = (None, None)
    if true is not None:
        errors = (
            metrics.distance(model, true),
            metrics.distance(native, case.native_points[task.name]),
        )
    shown = (1, *map(float, native)) if is_found else (0, None, None)
    return dict(zip(keys, (*shown, *errors), strict=True))


_SCORE: dict[tasks.Kind, Callable[[tasks.Task, Case, PostProcessing], dict]] = {
    "classification": _score_class,
    "segmentation": _score_mask,
    "localisation": _score_point,
}


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
    return value if value is None or name in metrics.rising() else -value


def fit_vcdr_classifier(
    split: pipeline.Split, C: float, post: PostProcessing = PAPER, chunk: int = 64
) -> vcdr.VcdrClassifier | None:
    """Fits the classifier on the true masks and diagnoses of the training split.

    Args:
      split: training split of the data set.
      C: inverse strength of the penalty, see `vcdr.fit`.
      post: conventions for the ratio.
      chunk: images per batch.

    Returns:
      The classifier; None unless both classes have images with both masks.
    """
    ratios, labels = [], []
    for indices, batch in batching.evaluation_batches(split, min(chunk, len(split))):
        for row in range(len(indices)):
            truth = truth_of(batch, row)
            ratio = cup_to_disc_ratio(truth, post.vcdr)
            if ratio is not None and truth[metrics.DIAGNOSIS] is not None:
                ratios.append(ratio)
                labels.append(truth[metrics.DIAGNOSIS])
    return vcdr.fit(ratios, labels, C)
