"""The map that teaches a network where the fovea is, and the map it predicts.

Pascal et al. 2022 show the first in figure 6, beside its photograph, as a "saliency map
centered on the fovea coordinates".
"""

import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from mtl_jax import losses, workdirs


class FoveaMaps(NamedTuple):
    """Maps of one image, from 0 to 1.

    Attributes:
      target: float32 [H, W], what the fovea loss compares the prediction with (under
        `data.pixel_origin="corner"` up to half a pixel beside it); None where no fovea
        is annotated.
      predicted: float32 [H, W], the sigmoid of the logits.
    """

    target: np.ndarray | None
    predicted: np.ndarray


def of_run(
    workdir: pathlib.Path, image: np.ndarray, fovea_xy: ArrayLike | None
) -> FoveaMaps | None:
    """The fovea maps of a run.

    Args:
      workdir: of the run.
      image: uint8 [H, W, 3] of the size of its data set's images.
      fovea_xy: [2], the annotated fovea (x, y) in pixels of the image, or None.

    Returns:
      Maps of the image's size; None if the run has no such task. Of a network that
      sees images at another size the target is what it learns from, taken at the pixels
      of the image.
    """
    network = workdirs.load_task(workdir, "fovea")
    if network is None:
        return None
    logits, _ = network({"image": np.stack([image] * network.batch_size)})
    target = None
    if fovea_xy is not None:
        points, size = jnp.asarray(fovea_xy, jnp.float32)[None], image.shape[:2]
        loss = network.config.loss
        (target,) = losses.fovea_map(points, size, loss.fovea_sigma, loss.fovea_peak)
        target = np.asarray(target)
    return FoveaMaps(target, expit(logits["fovea"][0]))
