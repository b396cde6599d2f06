"""Geometric loss strategy: the geometric mean of the losses."""

import jax.numpy as jnp

from mtl_jax.optim._scalarization import scalarization
from mtl_jax.optim._weighted import LossWeighting

_SMALLEST_LOSS = 1e-15


def geometric_mean() -> LossWeighting:
    """Reduces the geometric mean of the losses, known as GLS.

    The scalar is S = (L_1 L_2 ... L_N)^(1/N), so the weights are S / (N L_k): all
    weighted losses are equal. The mean is over the active tasks.

    The losses must be 0 or between 1e-15 and 1e15. A loss of 0 counts as 1e-15 in the
    mean, and has the weight 0. A negative loss makes all weights NaN: values cannot be
    checked under `jax.jit`. (TorchJD raises a ValueError.)

    Returns:
      A `LossWeighting` without state.

    Raises:
      ValueError: by `update` if the losses are not a vector.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> weighting = optim.geometric_mean()
      >>> state = weighting.init(None)
      >>> weights, state = weighting.update(jnp.array([1.0, 4.0]), None, state)
      >>> print(weights)  # The geometric mean is 2.
      [1.   0.25]

    References:
      Chennupati et al., `MultiNet++: Multi-Stream Feature Aggregation and Geometric
      Loss Strategy for Multi-Task Learning <https://arxiv.org/abs/1904.08492>`_, CVPR
      workshops 2019, the geometric loss strategy.
    """

    def scalar(losses, active):
        logs = jnp.log(jnp.where(losses == 0, _SMALLEST_LOSS, losses))
        return jnp.exp(jnp.mean(logs, where=active))

    return scalarization(scalar)
