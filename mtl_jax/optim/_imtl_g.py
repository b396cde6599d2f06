"""IMTL-G: an update with equal projections on all gradients."""

import jax
import jax.numpy as jnp

from mtl_jax.optim import _task_axis
from mtl_jax.optim._from_gram import WeightedAggregator, from_gram


def imtl_g() -> WeightedAggregator:
    """Weighs the tasks so that the update projects equally on all gradients.

    The update is u = sum_k w_k g_k with sum_k w_k = 1 and the same <u, g_k> / |g_k| for
    all k. It has the same cosine with every gradient. This cosine may be negative: some
    of the weights are, if three or more gradients differ much in length.

    A gradient of zero has weight 0. If the gradients are linearly dependent, w is the
    least-squares solution for the unit gradients that is smallest. For equal gradients,
    this is their mean. If no direction has equal projections other than 0, as with two
    opposite gradients, the update is 0.

    LibMTL inverts a matrix of the products of N - 1 differences, which fails for
    dependent gradients. TorchJD takes a pseudo-inverse of the Gram matrix of the
    gradients, and here it is one of the unit gradients. The two agree on independent
    gradients. Ours has the same direction for gradients of any lengths, in float32 too.

    The range of norms is that of `from_gram`, and so is the extra argument `active`.

    Returns:
      A `WeightedAggregator`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.imtl_g(), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[3.0, 0.0], [0.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> [round(float(x), 3) for x in updates]
      [-0.75, -0.75]

    References:
      Liu et al., `Towards Impartial Multi-task Learning
      <https://openreview.net/forum?id=IMPnRXEWpvr>`_, ICLR 2021, on IMTL-G.
    """
    return from_gram(_equal_projections)


def _equal_projections(gram: jax.Array) -> jax.Array:
    norms, cosines = _task_axis.norms_and_cosines(gram)
    weights = jnp.linalg.pinv(cosines, hermitian=True).sum(1)
    weights *= _task_axis.inverse(norms)
    total = weights.sum()
    # Of what is nothing but rounding no direction is made.
    is_zero = jnp.abs(total) <= _task_axis.rounding(gram) * jnp.abs(weights).sum()
    return jnp.where(is_zero, 0, weights / jnp.where(is_zero, 1, total))
