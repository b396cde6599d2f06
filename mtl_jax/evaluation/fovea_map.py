"""The map that teaches a network where a point is, and the map it predicts.

Pascal et al. 2022 show the first in figure 6, beside its photograph, as a "saliency map
centered on the fovea coordinates".
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from mtl_jax import workdirs


class FoveaMaps(NamedTuple):
    """Maps of one image, from 0 to 1.

    Attributes:
      task: name of the localisation.
      target: float32 [H, W], what its loss compares the prediction with (under
        `data.pixel_origin="corner"` up to half a pixel beside it); None where the point
        is not annotated.
      predicted: float32 [H, W], the sigmoid of the logits.
    """

    task: str
    target: np.ndarray | None
    predicted: np.ndarray


def of_run(
    workdir: pathlib.Path, image: np.ndarray, points: Mapping[str, ArrayLike]
) -> FoveaMaps | None:
    """The maps of a run's first localisation.

    Args:
      workdir: of the run.
      image: uint8 [H, W, 3] of the size of its data set's images.
      points: [2] by task, the annotated points (x, y) in pixels of the image.

    Returns:
      Maps of the image's size; None if the run has no such task. Of a network that
      sees images at another size the target is what it learns from, taken at the pixels
      of the image.
    """
    loaded = workdirs.load_kind(workdir, "localisation")
    if loaded is None:
        return None
    network, task = loaded
    logits, _ = network({"image": np.stack([image] * network.batch_size)})
    target = None
    if task.name in points:
        point = jnp.asarray(points[task.name], jnp.float32)[None]
        target = np.asarray(task.settings.map_of(point, image.shape[:2])[0])
    return FoveaMaps(task.name, target, expit(logits[task.name][0]))
