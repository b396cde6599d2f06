"""Penalty-based boundary intersection: losses along and off a direction."""

import jax
import jax.numpy as jnp

from mtl_jax.optim import _arguments
from mtl_jax.optim._scalarization import (
    Vector,
    scalarization,
    vector,
)
from mtl_jax.optim._weighted import LossWeighting

# Under the root, so that the distance has a derivative on the direction; as in TorchJD.
_EPSILON = 1e-12


def pbi(
    theta: float | jax.Array, weights: Vector, reference: Vector | None = None
) -> LossWeighting:
    """Reduces the losses along a direction, and their distance from it.

    With the direction u = c / |c| of the preferences and the ideal point z, the scalar
    is

      d + theta |L - z - d u|,  d = <L - z, u>

    A weight of this scalar can be negative: off the direction, a large theta lets small
    losses grow. The vectors are of the active tasks.

    Args:
      theta: price of the distance, not negative. The paper has 5.
      weights: c_k, [N], positive.
      reference: z_k, [N]; 0 by default.

    Returns:
      A `LossWeighting` without state.

    Raises:
      ValueError: if preferences are not positive; by `update` if the losses are not a
        vector, or the preferences or the ideal point are not [N].

    Example:
      >>> import jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> weighting = optim.pbi(5.0, weights=[1.0, 1.0])
      >>> state = weighting.init(None)
      >>> weights, state = weighting.update(jnp.array([2.0, 1.0]), None, state)
      >>> print(weights.round(3))  # (1 + 5) / sqrt(2) and (1 - 5) / sqrt(2)
      [ 4.243 -2.828]

    References:
      Zhang and Li, `MOEA/D: A Multiobjective Evolutionary Algorithm Based on
      Decomposition <https://doi.org/10.1109/TEVC.2007.892759>`_, 2007,
      Section II.C, on boundary intersection.
    """
    _arguments.require_range("theta", theta, 0)
    _arguments.require_positive("weights", weights)

    def scalar(losses, active):
        c = jnp.where(active, vector("weights", weights, losses), 0)
        shifted = losses - vector("reference", reference, losses)
        shifted = jnp.where(active, shifted, 0)
        direction = c / jnp.linalg.norm(c)
        along = shifted @ direction
        off = shifted - along * direction
        return along + theta * jnp.sqrt(off @ off + _EPSILON)

    return scalarization(scalar)
