"""DualProj: the mean gradient, projected so that it conflicts with no task."""

import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _convex
from mtl_jax.optim._from_gram import from_gram


def dualproj(pref_vector: _arguments.Preferences = None) -> aggregating.Aggregator:
    """Averages the gradients, and projects the mean onto their dual cone.

    The dual cone holds the vectors whose inner product with no gradient is negative. So
    the update is the vector nearest to the mean that conflicts with no task. GEM makes
    the same projection of one task's gradient, with the others' as constraints.

    TorchJD adds 1e-4 of the trace to the diagonal of the Gram matrix before it
    projects, which its `QuadprogProjector(reg_eps=...)` changes. Here it is a few
    epsilons of each square, and the projection is exact. The range of norms is that of
    `from_gram`, and so is the extra argument `active`.

    Args:
      pref_vector: weights of the average, see `upgrad`.

    Returns:
      An `optax.experimental.aggregating.Aggregator` without state.

    Raises:
      ValueError: as `upgrad`.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.dualproj(), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[4.0, 0.0], [-2.0, 2.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(np.round(updates, 4))  # The mean [1, 1] conflicts with neither.
      [-1. -1.]

    References:
      Lopez-Paz and Ranzato, `Gradient Episodic Memory for Continual Learning
      <https://arxiv.org/abs/1706.08840>`_, NeurIPS 2017, equation 11.

      Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization
      <https://arxiv.org/abs/2406.16232>`_, 2024, section 4.
    """
    pref_vector = _arguments.checked_preferences(pref_vector)

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        preferences = _arguments.preferences(pref_vector, active, gram.dtype)
        cosines, norms, present = _convex.unit_diagonal(gram, active)
        lengths = jnp.where(present, preferences * norms, 0)
        longest = jnp.where(lengths.any(), lengths.max(), 1)
        inner = _convex.product(cosines, lengths / longest)
        added = _convex.nonnegative_qp(cosines, jnp.where(present, -inner, -1))
        return preferences + longest * added / norms, state

    return from_gram(weights_fn, optax.init_empty_state)
