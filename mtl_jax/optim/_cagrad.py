"""CAGrad: near the mean gradient, the direction that is best for the worst task."""

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _convex
from mtl_jax.optim._from_gram import from_gram


def cagrad(c: float | jax.Array) -> aggregating.Aggregator:
    """Maximises the smallest inner product with a gradient, in a ball about the mean.

    The update is the d with |d - g_0| <= c |g_0| for which min_k <g_k, d> is largest,
    where g_0 is the mean of the gradients. With c = 0 it is the mean; for c < 1, it is
    zero only where the mean is.

    The problem is solved to the rounding of its objective. LibMTL and the official
    program for NYUv2 call SciPy's SLSQP, and TorchJD a cone solver. The first two then
    divide d by 1 + c^2 (rescale 1, the default) or 1 + c (rescale 2). As in the paper's
    algorithm and TorchJD, d stays as it is here; `optax.scale(1 / (1 + c**2))` behind
    it does the same. If the dual problem's convex combination of gradients is zero, no
    d has a positive minimum, and TorchJD's update is zero; ours is still a d of the
    problem above. With zero inside the gradients' convex hull and c >= 1 it is zero but
    for roundings, in float32 some percent of the gradients.

    A gradient of zero enters the mean, but not the minimum, which it would make at most
    zero for all d. The range of norms is that of `from_gram`, and so is the extra
    argument `active`.

    Args:
      c: radius of the ball relative to the mean's norm, not negative. The paper has it
        below 1. The default of LibMTL and of the official program for NYUv2 is 0.5.

    Returns:
      An `optax.experimental.aggregating.Aggregator` without state.

    Raises:
      ValueError: if c is negative.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.cagrad(0.5), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(np.round(updates, 2))  # The mean is [2, 0.5].
      [-2.   -1.53]

    References:
      Liu et al., `Conflict-Averse Gradient Descent for Multi-task Learning
      <https://arxiv.org/abs/2110.14048>`_, NeurIPS 2021, equation 3, algorithm 1.
    """
    _arguments.require(c >= 0, f"c is {c}, it must not be negative")

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        mean = _arguments.preferences(None, active, gram.dtype)
        return mean + _from_mean(gram, active, mean, c), state

    return from_gram(weights_fn, optax.init_empty_state)


def _from_mean(gram, active, mean, c):
    """The weights [N] of d - g_0."""
    cosines, norms, present = _convex.unit_diagonal(gram, active)
    longest = jnp.where(present, norms, 0).max()
    smallest = jnp.where(present, norms, jnp.inf).min()
    ones = jnp.where(present, smallest / norms, 0)
    lengths = jnp.where(present, mean * norms / longest, 0)
    square = _convex.product(lengths, _convex.product(cosines, lengths))
    size = jnp.sqrt(jnp.where(square > 0, square, 1))
    # In units of |g_0| the mean has the length 1.
    inner = jnp.where(present, _convex.product(cosines, lengths / size), 1)
    weights = size * _convex.best_in_ball(cosines, ones, inner, c)
    return jnp.where(present & (square > 0), weights, 0) * longest / norms
