"""From the logits of one image to what a clinician reads: masks, ratio, point, risk."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from mtl_jax.data import geometry
from mtl_jax.inference import postprocess, vcdr
from mtl_jax.inference.postprocess import PAPER, PostProcessing
from mtl_jax.inference.vcdr import VcdrClassifier

# Grey values of a mask that shows both, as REFUGE has them.
CUP, RIM, BACKGROUND = 0, 128, 255


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is predicted of one image; None where the network has no such task.

    Attributes:
      size: (height, width) of the image that masks and fovea refer to.
      disc: uint8 [h, w] mask.
      cup: uint8 [h, w] mask.
      fovea_xy: (x, y) in pixels.
      vcdr: vertical cup-to-disc ratio; that of masks is None also where both are
        empty, that of probabilities is of the network's image, whatever the size.
      probability_fc: of glaucoma, from the network's classifier.
      probability_vcdr: of glaucoma, from the ratio; without one the share of
        glaucomas among the training images.
      probability: the mean of the two, or the one there is.
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
      logits: by task; a number for glaucoma, [H, W] for the others.
      classifier: on the vertical cup-to-disc ratio; None if none was fitted.
      size: (height, width) that masks and fovea are wanted for: that of the network's
        image, or that of the photograph.
      post: by the paper's text or by its authors' program.
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
        # Where nothing was found there is no ratio, rather than that of a healthy eye.
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
    """Vertical ratio of two masks; None if there is none of one of them.

    The cup counts as part of the disc, as in the challenge's one mask with three
    values: without that, a cup where no disc was found would give a ratio of millions.
    The authors' program, of the convention `probabilities`, takes annotated masks for
    maps of probabilities and does not add the cup.
    """
    if disc is None or cup is None:
        return None
    if convention == "masks":
        disc = with_cup(disc, cup)
    return postprocess.vertical_cdr(disc, cup)


def with_cup(disc: np.ndarray | None, cup: np.ndarray | None) -> np.ndarray | None:
    """A uint8 disc mask that has the cup's pixels as well; None without a disc mask."""
    if disc is None or cup is None:
        return disc
    return ((disc > 0) | (cup > 0)).astype(np.uint8)


def grey_mask(prediction: Prediction) -> np.ndarray:
    """Disc and cup as one uint8 mask with REFUGE's values; the cup lies on top."""
    mask = np.full(prediction.size, BACKGROUND, np.uint8)
    if prediction.disc is not None:
        mask[prediction.disc > 0] = RIM
    if prediction.cup is not None:
        mask[prediction.cup > 0] = CUP
    return mask
