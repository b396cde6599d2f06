"""Smooth Tchebycheff scalarization: a smooth maximum of the weighted losses."""

import jax

from mtl_jax.optim import _arguments
from mtl_jax.optim._scalarization import (
    Vector,
    scalarization,
    vector,
)
from mtl_jax.optim._weighted import LossWeighting


def stch(
    mu: float | jax.Array,
    weights: Vector | None = None,
    reference: Vector | None = None,
) -> LossWeighting:
    """Reduces a smooth maximum of the weighted losses.

    With preferences c_k and the ideal point z_k, the scalar is

      mu log sum_k exp(c_k (L_k - z_k) / mu)

    so the weights are c_k softmax(c (L - z) / mu)_k. It tends to the maximum as mu
    falls. Sum and preferences are of the active tasks.

    This is the paper's equation, as in TorchJD. LibMTL and the official program for
    multi-task networks put log L_k in the place of L_k, the logarithm of the mean of
    L_k over one epoch in the place of z_k, and 1 in the place of c_k, and multiply the
    scalar by N. Up to the end of that epoch they reduce the sum of log L_k.

    Args:
      mu: smoothness, positive. The paper tries 0.01 to 1.
      weights: c_k, [N], positive; 1/N by default.
      reference: z_k, [N]; 0 by default.

    Returns:
      A `LossWeighting` without state.

    Raises:
      ValueError: if preferences are not positive; by `update` if the losses are not a
        vector, or the preferences or the ideal point are not [N].

    Example:
      >>> import jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> weighting = optim.stch(0.01, weights=[1.0, 2.0])
      >>> state = weighting.init(None)
      >>> weights, state = weighting.update(jnp.array([1.0, 0.8]), None, state)
      >>> print(weights.round(3))  # 2 * 0.8 is the larger one.
      [0. 2.]

    References:
      Lin et al., `Smooth Tchebycheff Scalarization for Multi-Objective Optimization
      <https://arxiv.org/abs/2402.19078>`_, ICML 2024, equation 9.
    """
    _arguments.require_positive("mu", mu)
    if weights is not None:
        _arguments.require_positive("weights", weights)

    def scalar(losses, active):
        shifted = losses - vector("reference", reference, losses)
        is_equal = weights is None
        c = 1 / active.sum() if is_equal else vector("weights", weights, losses)
        return mu * jax.nn.logsumexp(c * shifted / mu, where=active)

    return scalarization(scalar)
