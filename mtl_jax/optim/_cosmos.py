"""COSMOS: weighted losses whose vector is to point along the preferences."""

import jax
import jax.numpy as jnp

from mtl_jax.optim import _arguments
from mtl_jax.optim._scalarization import (
    Vector,
    scalarization,
    vector,
)
from mtl_jax.optim._weighted import LossWeighting

# Smallest norm of a vector of losses, as in TorchJD.
_EPSILON = 1e-8


def cosmos(lambda_: float | jax.Array, weights: Vector) -> LossWeighting:
    """Reduces the weighted losses, and the angle between them and the preferences.

    With preferences c, the scalar is

      sum_k c_k L_k - lambda cos(c, L)

    A weight of this scalar can be negative. Sums and norms are of the active tasks.

    The paper draws new preferences for every batch from a Dirichlet distribution, and
    the network sees them as a part of its input. This is the scalar alone.

    Args:
      lambda_: price of the angle, not negative. The paper has 0.01 to 8, by data set.
      weights: c_k, [N], positive.

    Returns:
      A `LossWeighting` without state.

    Raises:
      ValueError: if preferences are not positive; by `update` if the losses are not a
        vector, or the preferences are not [N].

    Example:
      >>> import jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> weighting = optim.cosmos(5.0, weights=[0.5, 0.5])
      >>> state = weighting.init(None)
      >>> weights, state = weighting.update(jnp.array([2.0, 1.0]), None, state)
      >>> bool(weights[1] < 0)  # The second loss is too small beside the first.
      True

    References:
      Ruchte and Grabocka, `Scalable Pareto Front Approximation for Deep Multi-Objective
      Learning <https://arxiv.org/abs/2103.13392>`_, ICDM 2021, equation 5.
    """
    _arguments.require_range("lambda_", lambda_, 0)
    _arguments.require_positive("weights", weights)

    def scalar(losses, active):
        c = jnp.where(active, vector("weights", weights, losses), 0)
        total = c @ losses
        squares = jnp.where(active, losses**2, 0).sum()
        norm = jnp.sqrt(jnp.maximum(squares, _EPSILON**2))
        return total - lambda_ * total / (jnp.linalg.norm(c) * norm)

    return scalarization(scalar)
