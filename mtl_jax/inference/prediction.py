"""Turns the logits of one image into masks, ratio, fovea and risk of glaucoma."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from mtl_jax.data import geometry
from mtl_jax.inference import postprocess, vcdr
from mtl_jax.inference.postprocess import PAPER, PostProcessing
from mtl_jax.inference.vcdr import VcdrClassifier

# REFUGE's grey values of a mask that shows both structures.
CUP, RIM, BACKGROUND = 0, 128, 255


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image; None where the network has no such task.

    Attributes:
      size: (height, width) of the image that masks and fovea refer to.
      disc: uint8 [h, w] mask.
      cup: uint8 [h, w] mask.
      fovea_xy: (x, y) in pixels.
      vcdr: vertical cup-to-disc ratio. From masks, it is None if both are empty. From
        probabilities, it belongs to the network's image for any `size`.
      probability_fc: probability of glaucoma from the network's classifier.
      probability_vcdr: probability of glaucoma from the ratio; without a ratio, the
        share of glaucomas among the training images.
      probability: mean of the two, or the only one.
    """

    size: tuple[int, int]
    disc: np.ndarray | None = None
    cup: np.ndarray | None = None
    fovea_xy: np.ndarray | None = None
    vcdr: float | None = None
    probability_fc: float | None = None
    probability_vcdr: float | None = None
    probability: float | None = None

    @property
    def glaucoma(self) -> bool | None:
        """The diagnosis."""
        return vcdr.diagnose(self.probability)


def interpret(
    logits: Mapping[str, np.ndarray],
    classifier: VcdrClassifier | None,
    size: tuple[int, int],
    post: PostProcessing = PAPER,
) -> Prediction:
    """Post-processes the logits of one image as Pascal et al. 2022 do.

    Args:
      logits: logits by task: a number for glaucoma, [H, W] for the others.
      classifier: classifier on the vertical cup-to-disc ratio; None if not fitted.
      size: (height, width) for masks and fovea: that of the network's image, or that
        of the photograph.
      post: conventions of the paper's text or of its authors' program.
    """
    disc, cup = (
        postprocess.segment(logits[name], size, post) if name in logits else None
        for name in ("disc", "cup")
    )
    fovea_xy = None
    if "fovea" in logits:
        point = np.array(postprocess.centre_of_mass(logits["fovea"]))
        fovea_xy = geometry.rescale_xy(
            point, logits["fovea"].shape, size, post.pixel_origin
        )
    fc = float(expit(logits["glaucoma"])) if "glaucoma" in logits else None
    ratio, from_ratio = None, None
    if disc is not None and cup is not None:
        if post.vcdr == "probabilities":
            ratio = postprocess.probability_cdr(logits["disc"], logits["cup"])
        # Empty masks have no ratio: 0 would be that of a healthy eye.
        elif disc.any() or cup.any():
            ratio = cup_to_disc_ratio(disc, cup)
        if classifier is not None:
            from_ratio = vcdr.predict_probability(classifier, ratio)
    return Prediction(
        size=size,
        disc=disc,
        cup=cup,
        fovea_xy=fovea_xy,
        vcdr=ratio,
        probability_fc=fc,
        probability_vcdr=from_ratio,
        probability=vcdr.combine(fc, from_ratio),
    )


def cup_to_disc_ratio(
    disc: np.ndarray | None,
    cup: np.ndarray | None,
    convention: postprocess.Vcdr = "masks",
) -> float | None:
    """Computes the vertical ratio of two masks; None if one of them is None.

    The cup counts as part of the disc, as in the challenge's mask with three values.
    Otherwise a cup without a disc would give a ratio of millions. With the convention
    `probabilities` the cup is not added: the authors' program treats annotated masks as
    maps of probabilities.
    """
    if disc is None or cup is None:
        return None
    if convention == "masks":
        disc = with_cup(disc, cup)
    return postprocess.vertical_cdr(disc, cup)


def with_cup(disc: np.ndarray | None, cup: np.ndarray | None) -> np.ndarray | None:
    """Adds the cup to a disc mask, uint8 [h, w]; None without a disc mask."""
    if disc is None or cup is None:
        return disc
    return ((disc > 0) | (cup > 0)).astype(np.uint8)


def grey_mask(prediction: Prediction) -> np.ndarray:
    """Draws disc and cup into one uint8 mask with REFUGE's values, the cup on top."""
    mask = np.full(prediction.size, BACKGROUND, np.uint8)
    if prediction.disc is not None:
        mask[prediction.disc > 0] = RIM
    if prediction.cup is not None:
        mask[prediction.cup > 0] = CUP
    return mask
