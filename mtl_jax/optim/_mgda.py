"""MGDA: the shortest convex combination of the gradients."""

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _convex
from mtl_jax.optim._from_gram import from_gram


def mgda() -> aggregating.Aggregator:
    """Takes the point of the gradients' convex hull that is nearest to zero.

    Its inner product with each gradient is at least its own square, so that a small
    step against it lowers all losses. It is zero where the parameters are Pareto
    stationary, and so if the gradient of an active task is zero.

    The minimum is exact. TorchJD takes up to 100 steps of Frank and Wolfe's method.
    Sener and Koltun's official code and LibMTL solve two tasks in closed form, but with
    0.001 in the place of a weight of 0, and more tasks by steps of a projected gradient
    until the weights change by less than 1e-5. Both can divide the gradients by their
    norms or losses first; here that would be another function for `optim.from_gram`.
    The range of norms is that of `from_gram`, and so is the extra argument `active`.

    Returns:
      An `optax.experimental.aggregating.Aggregator` without state.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.mgda(), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[1.0, 1.0], [-1.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(np.round(updates, 4) + 0)
      [ 0. -1.]

    References:
      Désidéri, `Multiple-gradient descent algorithm (MGDA) for multiobjective
      optimization <https://doi.org/10.1016/j.crma.2012.03.014>`_, 2012.

      Sener and Koltun, `Multi-Task Learning as Multi-Objective Optimization
      <https://arxiv.org/abs/1810.04650>`_, NeurIPS 2018, equation 3.
    """

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        return _shortest(gram, active), state

    return from_gram(weights_fn, optax.init_empty_state)


def _shortest(gram: jax.Array, active: jax.Array) -> jax.Array:
    """The weights [N] of the shortest convex combination."""
    cosines, norms, present = _convex.unit_diagonal(gram, active)
    smallest = jnp.where(present, norms, jnp.inf).min()
    # In units of the norms, so that all are alike.
    ones = jnp.where(present, smallest / norms, 0)
    weights = _convex.shortest(cosines, ones) * ones
    is_zero = active & ~present
    return jnp.where(is_zero.any(), is_zero / is_zero.sum(), weights)
