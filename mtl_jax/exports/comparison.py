"""Compares an exported network with what `predict` says of the same images."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from mtl_jax import tasks
from mtl_jax.data import geometry, images
from mtl_jax.evaluation import predict
from mtl_jax.exports.file import Export
from mtl_jax.inference import averaging
from mtl_jax.workdirs import TrainedNetwork


class Differences(NamedTuple):
    """The largest absolute differences; None where the network has no such output.

    Attributes:
      maps: of the probability of a pixel.
      probabilities: of a probability of an image.
      points: of a point, in pixels of the image.
      vcdr: of the cup-to-disc ratio.
      mask_pixels: number of pixels of masks that differ, of all images.
      num_images: number of images that were compared.
    """

    maps: float | None
    probabilities: float | None
    points: float | None
    vcdr: float | None
    mask_pixels: int
    num_images: int


def compare(
    exported: Export, network: TrainedNetwork, photographs: Sequence[pathlib.Path]
) -> Differences:
    """Compares an export with its network on photographs.

    Both see the photographs brought to the network's size, and say what they find
    there: `predict` as of a photograph of that size.

    Args:
      exported: the export, read back.
      network: the network that it was written from.
      photographs: paths of photographs.

    Raises:
      UserError: if a photograph cannot be read.
    """
    found: dict[str, list[float]] = {}
    mask_pixels = 0
    for start in range(0, len(photographs), network.batch_size):
        seen = [
            predict.as_seen(network, images.open_photograph(path)[0])
            for path in photographs[start : start + network.batch_size]
        ]
        theirs = exported.function(np.stack([one.model_image for one in seen]))
        outputs = predict.outputs_of(network, seen)
        for row in range(len(seen)):
            ours = _as_predicted(network, outputs, row)
            for name, value in theirs.items():
                kind = name.partition("_")[0]
                if kind == "mask":
                    mask_pixels += int((ours[name] != value[row]).sum())
                    continue
                found.setdefault(kind, []).append(_distance(ours[name], value[row]))
    largest = {kind: max(values) for kind, values in found.items()}
    return Differences(
        largest.get("map"),
        largest.get("probability"),
        largest.get("point"),
        largest.get("vcdr"),
        mask_pixels,
        len(photographs),
    )


def _as_predicted(
    network: TrainedNetwork, outputs: averaging.Outputs, row: int
) -> dict[str, np.ndarray | float | None]:
    """What `predict` says of one image, by the names of an export's outputs."""
    frame = geometry.whole((network.image_size, network.image_size))
    prediction = averaging.read(
        outputs, row, network.classifier, frame, network.post, network.calibration
    )
    named: dict[str, np.ndarray | float | None] = {
        "probability": prediction.probability,
        "probability_fc": prediction.probability_fc,
        "probability_vcdr": prediction.probability_vcdr,
        "vcdr": prediction.vcdr,
    }
    prefixes = {
        "classification": "probability",
        "segmentation": "mask",
        "localisation": "point",
    }
    for name, value in prediction.found.items():
        named[f"{prefixes[tasks.TASKS[name].kind]}_{name}"] = value
        if tasks.TASKS[name].is_dense:
            named[f"map_{name}"] = expit(outputs.logits[name][row])
    return named


def _distance(ours: np.ndarray | float | None, theirs: np.ndarray) -> float:
    """The largest difference; None of ours is NaN in an export."""
    value = np.asarray(np.nan if ours is None else ours, np.float64)
    both = np.isnan(value) & np.isnan(theirs)
    difference = np.abs(np.where(both, 0.0, value - theirs))
    return float(np.where(np.isnan(difference), np.inf, difference).max())
