"""Averages what several networks, or one on flipped images, say of an image.

A member is a network that sees the images in one orientation. What members say is
averaged before it is interpreted:

- a class or a pixel of a mask gets the mean of the members' probabilities;
- a point becomes the mean of the members' points. For this, the members' maps are
  averaged after each is divided by its sum: the centre of mass of that mean is the mean
  of the centres of mass;
- a point that is read off the peak of a map (`PostProcessing.point`) is read off the
  peak of the mean map, so that members that see little say little.

The vertical cup-to-disc ratio and its probability are then those of the mean maps.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit

from mtl_jax import metrics, tasks
from mtl_jax.data import geometry
from mtl_jax.data.field_of_view import FieldOfView
from mtl_jax.inference.calibration import Calibration, calibrated
from mtl_jax.inference.postprocess import PAPER, Point, PostProcessing
from mtl_jax.inference.prediction import Prediction, interpret, leave_out_hidden
from mtl_jax.inference.vcdr import VcdrClassifier

Batch = dict[str, np.ndarray]
Logits = dict[str, np.ndarray]


class Outputs(NamedTuple):
    """What a network says of a batch, in host memory.

    Attributes:
      logits: logits by task, [B] or [B, H, W].
      losses: losses by task, [B]. Those of an average are its first member's.
      members: logits of each member of an average; empty for one network.
    """

    logits: Logits
    losses: dict[str, np.ndarray]
    members: tuple[Logits, ...] = ()


# Maps a batch to `Outputs`, or to the first two of them.
Network = Callable[[Batch], tuple[Any, ...]]

# The axes of [B, H, W] along which a member of test-time augmentation flips images.
FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))


def outputs_of(network: Network, batch: Batch) -> Outputs:
    """Applies a network to a batch."""
    outputs = network(batch)
    return outputs if isinstance(outputs, Outputs) else Outputs(*outputs)


def of_flips(
    network: Network, batch: Batch, flips: Sequence[tuple[int, ...]]
) -> list[Outputs]:
    """Applies a network to flips of a batch, which are one batch, and flips maps back.

    So a few photographs and their flips fill one batch of the network.

    Args:
      network: any network, such as one of two stages, for any number of images.
      batch: a batch of B images.
      flips: some of `FLIPS`, axes of [B, H, W]. The losses are meaningless unless the
        axes are empty.
    """
    count = len(batch["image"])
    images = [np.flip(batch["image"], axes) for axes in flips]
    repeated = {
        key: np.concatenate([values] * len(flips)) for key, values in batch.items()
    }
    outputs = outputs_of(network, {**repeated, "image": np.concatenate(images)})

    def share(index: int, axes: tuple[int, ...]) -> Outputs:
        mine = slice(index * count, (index + 1) * count)
        logits = {
            name: np.flip(x[mine], axes) if tasks.TASKS[name].is_dense else x[mine]
            for name, x in outputs.logits.items()
        }
        return Outputs(logits, {name: x[mine] for name, x in outputs.losses.items()})

    return [share(index, axes) for index, axes in enumerate(flips)]


def averaged(
    networks: Sequence[Network],
    flips: Sequence[tuple[int, ...]] = FLIPS[:1],
    point: Point = "map",
) -> Callable[[Batch], Outputs]:
    """Makes the network that averages others, and each over flips.

    Args:
      networks: networks for any number of images. The first one gives the losses.
      flips: some of `FLIPS`, the first of which flips nothing.
      point: how points are read, see `postprocess.centre_of_mass`.
    """

    def apply(batch: Batch) -> Outputs:
        outputs = [
            one for network in networks for one in of_flips(network, batch, flips)
        ]
        members = tuple(each.logits for each in outputs)
        return Outputs(average(members, point), outputs[0].losses, members)

    return apply


def average(members: Sequence[Logits], point: Point = "map") -> Logits:
    """Returns the logits of the mean probabilities by task, in float64.

    Args:
      members: logits of each member.
      point: how points are read, see `postprocess.centre_of_mass`.
    """
    found = {}
    for name in members[0]:
        is_point = tasks.TASKS[name].kind == "localisation"
        mean = _mean_of_shares if is_point and point == "map" else _mean
        found[name] = _average([member[name] for member in members], mean)
    return found


def _average(
    logits: Sequence[np.ndarray], mean_of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    mean = mean_of(expit(np.stack(logits).astype(np.float64)))
    # Keeps the logits finite.
    return logit(np.clip(mean, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0)))


def _mean(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.mean(0)


def _mean_of_shares(maps: np.ndarray) -> np.ndarray:
    """Averages maps [M, B, H, W] so that centres of mass are averaged.

    The mean has the maps' mean mass, unless a probability would then be above 1.
    """
    mass = maps.sum((-2, -1), keepdims=True)
    # The centre of mass of an empty map is the centre of the image.
    uniform = 1 / np.prod(maps.shape[-2:])
    shares = np.divide(maps, mass, out=np.full_like(maps, uniform), where=mass > 0)
    mean = shares.mean(0) * mass.mean(0)
    return mean / np.maximum(mean.max((-2, -1), keepdims=True), 1)


def read(
    outputs: Outputs,
    row: int,
    classifier: VcdrClassifier | None,
    frame: geometry.Frame,
    post: PostProcessing = PAPER,
    calibration: Calibration | None = None,
    photograph: geometry.Frame | None = None,
    field: FieldOfView | None = None,
) -> Prediction:
    """Interprets and calibrates the outputs for one image, with their spread.

    Args:
      outputs: outputs for a batch.
      row: index of the image in the batch.
      classifier: classifier on the vertical cup-to-disc ratio; None if not fitted.
      frame: what the network's image shows of the image that masks and points are for.
      post: conventions for the network's maps.
      calibration: calibration of the probabilities; None for none.
      photograph: what the network's image shows of the photograph; None for `frame`.
      field: field of view of the network's image, in its pixels, to leave out points
        that are hidden, see `prediction.leave_out_hidden`; None to report all.
    """

    def of_image(logits: Logits) -> dict[str, np.ndarray]:
        return {task: values[row] for task, values in logits.items()}

    logits = of_image(outputs.logits)
    found = interpret(logits, classifier, frame, post)
    if field is not None:
        found = leave_out_hidden(found, logits, frame, field, post)
    prediction = calibrated(found, calibration)
    if not outputs.members:
        return prediction
    members = [of_image(logits) for logits in outputs.members]
    own = spread(members, classifier, photograph or frame, post, calibration)
    return dataclasses.replace(prediction, spread=own)


def spread(
    members: Sequence[Mapping[str, np.ndarray]],
    classifier: VcdrClassifier | None,
    photograph: geometry.Frame,
    post: PostProcessing = PAPER,
    calibration: Calibration | None = None,
) -> dict[str, float | None]:
    """Computes how far apart the members of an average are for one image.

    The members' masks are compared at the network's resolution.

    Args:
      members: logits of each member.
      classifier: classifier on the vertical cup-to-disc ratio; None if not fitted.
      photograph: what the network's image shows of the photograph.
      post: conventions for the network's maps.
      calibration: calibration of the probabilities; None for none.

    Returns:
      By `spread_columns`, the standard deviation (divided by the number of members) of
      each probability and of the ratio, and of each point: the root mean square
      distance from the mean point, in pixels of the photograph. None where fewer than
      two members found something.
    """
    maps = [values for values in members[0].values() if np.ndim(values) == 2]
    size = maps[0].shape if maps else (1, 1)
    frame = geometry.whole(size)
    predictions = [
        calibrated(interpret(member, classifier, frame, post), calibration)
        for member in members
    ]
    values: dict[str, list[Any]] = {"vcdr_spread": [each.vcdr for each in predictions]}
    for task in tasks.of_kind("classification"):
        values[f"{metrics.probability_of(task)}_spread"] = [
            each.probability
            if task.name == metrics.DIAGNOSIS
            else each.found.get(task.name)
            for each in predictions
        ]
    for task in tasks.of_kind("localisation"):
        points = (each.found.get(task.name) for each in predictions)
        values[f"{task.name}_spread"] = [
            geometry.xy_to_native(point, photograph, size, post.pixel_origin)
            for point in points
            if point is not None
        ]
    return {name: _deviation(values[name]) for name in spread_columns()}


def spread_columns() -> tuple[str, ...]:
    """Names the columns with a spread: of classes, of the ratio, of points."""
    classes, points = map(tasks.of_kind, ("classification", "localisation"))
    return (
        *(f"{metrics.probability_of(task)}_spread" for task in classes),
        "vcdr_spread",
        *(f"{task.name}_spread" for task in points),
    )


def _deviation(values: Sequence[float | np.ndarray | None]) -> float | None:
    """Computes the root mean square distance of numbers or points from their mean."""
    known = np.array([value for value in values if value is not None])
    if len(known) < 2:
        return None
    return float(np.sqrt(((known - known.mean(0)) ** 2).sum() / len(known)))
