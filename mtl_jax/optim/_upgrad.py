"""UPGrad: the gradients, projected so that none conflicts with any, and averaged."""

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _convex
from mtl_jax.optim._from_gram import from_gram


def upgrad(pref_vector: _arguments.Preferences = None) -> aggregating.Aggregator:
    """Projects each gradient onto the dual cone of all, and averages the results.

    The dual cone holds the vectors whose inner product with no gradient is negative. So
    the update conflicts with no task. It is linear in the length of each gradient.

    TorchJD adds 1e-4 of the trace to the diagonal of the Gram matrix before it
    projects, which its `QuadprogProjector(reg_eps=...)` changes. Here it is a few
    epsilons of each square, and the projections are exact. The range of norms is that
    of `from_gram`, and so is the extra argument `active`.

    Args:
      pref_vector: weights of the average, [N], not negative; 1/N for every task by
        default. A task of weight 0 does not pull, and is not conflicted with either.
        With tasks absent from a batch, the default averages over the others, and given
        weights stay as they are.

    Returns:
      An `optax.experimental.aggregating.Aggregator` without state.

    Raises:
      ValueError: if `pref_vector` is not a vector of such numbers; by `update` if there
        is not one for each task.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.upgrad(), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[1.0, 0.0], [-1.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(np.round(updates, 4))  # Minus the mean of [0.5, 0.5] and [0, 1].
      [-0.25 -0.75]

    References:
      Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization
      <https://arxiv.org/abs/2406.16232>`_, 2024, equations 3 and 4, proposition 1.
    """
    pref_vector = _arguments.checked_preferences(pref_vector)

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        preferences = _arguments.preferences(pref_vector, active, gram.dtype)
        return _projected(gram, active, preferences), state

    return from_gram(weights_fn, optax.init_empty_state)


def _projected(gram, active, preferences):
    cosines, norms, present = _convex.unit_diagonal(gram, active)

    def corrections(cosines_with_one):
        """What the projection of one unit gradient adds to it, in unit gradients."""
        linear = jnp.where(present, -cosines_with_one, -1)
        return _convex.nonnegative_qp(cosines, linear)

    added = jax.vmap(corrections)(cosines)
    lengths = jnp.where(present, preferences * norms, 0)
    return preferences + (lengths[:, None] * added).sum(0) / norms
