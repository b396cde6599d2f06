"""Turns the logits of one image into masks, points and probabilities.

The kind of a task determines what it finds. The tasks disc, cup and glaucoma also give
the vertical cup-to-disc ratio, the averaged diagnosis, and the mask with three values.
They are derived here; no other module asks for a task by its name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import expit

from mtl_jax import tasks
from mtl_jax.data import geometry
from mtl_jax.data.field_of_view import FieldOfView
from mtl_jax.inference import postprocess, vcdr
from mtl_jax.inference.postprocess import PAPER, PostProcessing
from mtl_jax.inference.vcdr import VcdrClassifier
from mtl_jax.metrics import DIAGNOSIS

_DISC, _CUP, _FOVEA = "disc", "cup", "fovea"

# REFUGE's grey values of a mask with disc and cup, and the tasks that it shows.
CUP, RIM, BACKGROUND = 0, 128, 255
IN_GREY_MASK = (_DISC, _CUP)

Size = tuple[int, int]
# The finding of each task, by its kind: a probability (float), a mask (uint8 [h, w]),
# or a point (x, y). It is None or absent if there is none.
Found = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
      size: (height, width) of the image that masks and points refer to.
      found: findings by task of the network.
      unreported: points that `leave_out_hidden` took from `found`, by task.
      vcdr: vertical cup-to-disc ratio; None where the network lacks disc or cup. From
        masks, it is None if both are empty. From probabilities, it belongs to the
        network's image for any `size`.
      probability_vcdr: probability of glaucoma from the ratio; without a ratio, the
        share of glaucomas among the training images.
      probability: mean of `probability_fc` and `probability_vcdr`, or the known one.
      threshold: probability from which on the diagnosis is glaucoma.
      uncalibrated: probabilities before calibration, by `probability`,
        `probability_fc` and `probability_vcdr`; empty if they are not calibrated.
      spread: spread over the members of an average by column, see `averaging.spread`;
        empty for one network.
    """

    size: Size
    found: Found = dataclasses.field(default_factory=dict)
    unreported: Found = dataclasses.field(default_factory=dict)
    vcdr: float | None = None
    probability_vcdr: float | None = None
    probability: float | None = None
    threshold: float = 0.5
    uncalibrated: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    spread: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def probability_fc(self) -> float | None:
        """Probability of glaucoma from the network's classifier."""
        return self.found.get(DIAGNOSIS)

    @property
    def disc(self) -> np.ndarray | None:
        """Mask of the optic disc; None if the network does not look for it."""
        return self.found.get(_DISC)

    def point(self, name: str) -> np.ndarray | None:
        """Returns the point of a task, reported or not; None without the task."""
        found = self.found.get(name)
        return self.unreported.get(name) if found is None else found

    @property
    def diagnosis(self) -> bool | None:
        """Whether the diagnosis is glaucoma; None without a probability."""
        return vcdr.diagnose(self.probability, self.threshold)


def _probability(
    logit: np.ndarray, frame: geometry.Frame, post: PostProcessing
) -> float:
    return float(expit(logit))


def _point(
    logits: np.ndarray, frame: geometry.Frame, post: PostProcessing
) -> np.ndarray:
    point = postprocess.centre_of_mass(logits, post.point)
    return geometry.xy_to_native(point, frame, logits.shape, post.pixel_origin)


_READ: dict[tasks.Kind, Callable[[np.ndarray, geometry.Frame, PostProcessing], Any]] = {
    "classification": _probability,
    "segmentation": postprocess.segment,
    "localisation": _point,
}


def interpret(
    logits: Mapping[str, np.ndarray],
    classifier: VcdrClassifier | None,
    frame: geometry.Frame,
    post: PostProcessing = PAPER,
) -> Prediction:
    """Post-processes the logits of one image as Pascal et al. 2022 do.

    Args:
      logits: logits by task: a number for a classification, [H, W] for the others.
      classifier: classifier on the vertical cup-to-disc ratio; None if not fitted.
      frame: what the network's image shows of the image that masks and points are for:
        of the photograph, or, as `geometry.whole`, of itself.
      post: conventions of the paper's text or of its authors' program.
    """
    found = {
        name: _READ[tasks.TASKS[name].kind](values, frame, post)
        for name, values in logits.items()
    }
    if post.cup == "in_disc" and {_DISC, _CUP} <= logits.keys():
        found[_CUP] = postprocess.segment(logits[_CUP], frame, post, found[_DISC])
    disc, cup = found.get(_DISC), found.get(_CUP)
    ratio, from_ratio = None, None
    if disc is not None and cup is not None:
        if post.vcdr == "probabilities":
            ratio = postprocess.probability_cdr(logits[_DISC], logits[_CUP])
        # Empty masks have no ratio: 0 would be that of a healthy eye.
        elif disc.any() or cup.any():
            ratio = cup_to_disc_ratio(found)
        if classifier is not None:
            from_ratio = vcdr.predict_probability(classifier, ratio)
    return Prediction(
        size=frame.native_size,
        found=found,
        vcdr=ratio,
        probability_vcdr=from_ratio,
        probability=vcdr.combine(found.get(DIAGNOSIS), from_ratio),
    )


def leave_out_hidden(
    prediction: Prediction,
    logits: Mapping[str, np.ndarray],
    frame: geometry.Frame,
    field: FieldOfView,
    post: PostProcessing = PAPER,
) -> Prediction:
    """Reports no point that the photograph does not show.

    The centre of mass always exists. It is not reported outside the field of view, or
    if no pixel of the map has a probability of `postprocess.LEAST_PEAK`. Nor is a fovea
    inside the disc: its distance from the disc's centre is over two disc diameters.

    Args:
      prediction: result of `interpret`.
      logits: the logits that it was given.
      frame: the frame that it was given.
      field: field of view of the network's image, in its pixels; the error of a pixel
        is allowed for.
      post: the conventions that it was given.

    Returns:
      The prediction, where such points are None in `found` and stand in `unreported`.
    """
    unreported = {}
    for task in tasks.of_kind("localisation"):
        point = prediction.found.get(task.name)
        if point is None:
            continue
        size = logits[task.name].shape
        in_model = geometry.xy_to_model(point, frame, size, post.pixel_origin)
        is_shown = field.contains(in_model, margin=1) and (
            expit(logits[task.name].max()) >= postprocess.LEAST_PEAK
        )
        in_disc = task.name == _FOVEA and _is_inside(prediction.disc, point)
        if in_disc or not is_shown:
            unreported[task.name] = point
    found = {**prediction.found, **dict.fromkeys(unreported)}
    return dataclasses.replace(prediction, found=found, unreported=unreported)


def _is_inside(mask: np.ndarray | None, point: np.ndarray) -> bool:
    # `PostProcessing.empty` may stand for no mask by all of the image.
    if mask is None or mask.all():
        return False
    far = np.subtract(mask.shape[::-1], 1)
    column, row = np.clip(np.rint(point), 0, far).astype(int)
    return bool(mask[row, column])


def cup_to_disc_ratio(
    found: Found, convention: postprocess.Vcdr = "masks"
) -> float | None:
    """Computes the vertical ratio of disc and cup; None if one of them is None.

    The cup counts as part of the disc, as in the challenge's mask with three values.
    Otherwise a cup without a disc would give a ratio of millions. With the convention
    `probabilities` the cup is not added: the authors' program treats annotated masks as
    maps of probabilities.
    """
    if convention == "masks":
        found = with_cup(found)
    disc, cup = found.get(_DISC), found.get(_CUP)
    if disc is None or cup is None:
        return None
    return postprocess.vertical_cdr(disc, cup)


def with_cup(found: Found) -> dict[str, Any]:
    """Adds the cup to the disc if both exist, as in one mask with three values."""
    disc, cup = found.get(_DISC), found.get(_CUP)
    if disc is None or cup is None:
        return dict(found)
    return {**found, _DISC: ((disc > 0) | (cup > 0)).astype(np.uint8)}


def grey_mask(prediction: Prediction) -> np.ndarray | None:
    """Draws disc and cup into one uint8 mask with REFUGE's values, the cup on top.

    Returns:
      None if the network has neither.
    """
    values = {_DISC: RIM, _CUP: CUP}
    masks = {name: prediction.found.get(name) for name in values}
    if all(mask is None for mask in masks.values()):
        return None
    grey = np.full(prediction.size, BACKGROUND, np.uint8)
    for name, mask in masks.items():
        if mask is not None:
            grey[mask > 0] = values[name]
    return grey
