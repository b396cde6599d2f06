"""Computes a gradient map: the pixels that a diagnosis depends on.

The paper has no such map. What its figure 6 calls a saliency map is the fovea's target
map, see `fovea_map`.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtl_jax import workdirs
from mtl_jax.training import parallel
from mtl_jax.training.step import as_unit_range

# Number of noisy copies, and standard deviation of the noise on pixels in [0, 1].
NUM_COPIES = 32
NOISE = 0.1


def saliency(
    logit: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    image: np.ndarray,
    seed: int = 0,
) -> np.ndarray:
    """Computes how strongly a logit depends on each pixel: its gradient map.

    The map is the largest absolute gradient over the colours (Simonyan et al. 2014).
    The gradient is the mean over noisy copies of the image (SmoothGrad, Smilkov et al.
    2017). The gradient of the image alone is mostly noise.

    Args:
      logit: maps variables and float32 images [1, H, W, 3] in [0, 1] to logits [1].
      variables: variables of the network.
      image: uint8 [H, W, 3].
      seed: seed of the noise.

    Returns:
      float32 [H, W], not negative.

    References:
      `Deep Inside Convolutional Networks <https://arxiv.org/abs/1312.6034>`_;
      `SmoothGrad <https://arxiv.org/abs/1706.03825>`_.
    """

    @jax.jit
    def mean_gradient(variables, image, keys):
        gradient = jax.grad(lambda x: logit(variables, x).sum())

        def of_copy(key):
            noise = NOISE * jax.random.normal(key, image.shape)
            return gradient((image + noise)[None])[0]

        return lax.map(of_copy, keys).mean(0)

    keys = jax.random.split(jax.random.key(seed), NUM_COPIES)
    mean = mean_gradient(variables, as_unit_range(jnp.asarray(image)), keys)
    return np.asarray(jnp.abs(mean).max(-1))


def of_run(
    workdir: pathlib.Path, image: np.ndarray, disc: np.ndarray | None = None
) -> np.ndarray | None:
    """Computes the gradient map of a run's first classification, see `saliency`.

    Args:
      workdir: folder of the run.
      image: uint8 [H, W, 3] of the size of its data set's images.
      disc: uint8 [H, W] mask of the optic disc, around which the second of two stages
        looks; None or an empty one for the whole image.

    Returns:
      float32 [H, W]; None if the run has no classifier.
    """
    loaded = workdirs.load_kind(workdir, "classification")
    if loaded is None:
        return None
    network, task = loaded
    model, view = network.experiment.model, network.experiment.view
    mask = np.zeros(image.shape[:2], np.uint8) if disc is None else disc
    # Within the compiled gradient XLA would take long to fold these constants.
    seen = {"image": jnp.asarray(image[None]), "disc_mask": jnp.asarray(mask[None])}
    windows = None if view is None else view.windows(seen)

    def logit(variables, images):
        if view is not None and windows is not None:
            images = view.look({"image": images}, windows)["image"]
        # pyrefly: ignore[bad-index]  # A pair only where `mutable` is given.
        return model.apply(variables, images, heads=[task.name])[task.name]

    ((_, variables),) = network.networks
    return saliency(logit, parallel.unreplicate(variables), image)
