"""Computes the target map of a point, and the map that a network predicts for it.

Figure 6 of Pascal et al. 2022 shows the target map beside its photograph, as a
"saliency map centered on the fovea coordinates".
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
      target: float32 [H, W], the map that the loss compares the prediction with; None
        where the point is not annotated. With `data.pixel_origin="corner"`, the
        loss's map lies up to half a pixel beside this one.
      predicted: float32 [H, W], the sigmoid of the logits.
    """

    task: str
    target: np.ndarray | None
    predicted: np.ndarray


def of_run(
    workdir: pathlib.Path, image: np.ndarray, points: Mapping[str, ArrayLike]
) -> FoveaMaps | None:
    """Computes the maps of a run's first localisation.

    Args:
      workdir: folder of the run.
      image: uint8 [H, W, 3] of the size of its data set's images.
      points: annotated points (x, y) by task, [2] each, in pixels of the image.

    Returns:
      Maps of the image's size; None if the run has no such task. The target has this
      size even if the network sees images at another one.
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
