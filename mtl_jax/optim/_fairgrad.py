"""FairGrad: the update that is alpha-fair to the tasks."""

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _convex
from mtl_jax.optim._from_gram import from_gram


def fairgrad(alpha: float | jax.Array) -> aggregating.Aggregator:
    """Shares the update among the tasks by alpha-fairness of their gains.

    The weights solve

      (G w)_k = w_k^(-1/alpha),  w > 0

    With alpha = 1 the shares are proportionally fair, as in Nash-MTL; the larger alpha
    is, the more the gains <g_k, d> = (G w)_k are alike. The equation is that of the
    paper, the official code, LibMTL and TorchJD, and the Gram matrix is not scaled
    before. So s times the gradients gives s^((1 - alpha) / (1 + alpha)) times the
    update: the same one for alpha = 1, and a longer one from shorter gradients for a
    larger alpha.

    The official code, LibMTL and TorchJD minimise the squared residual of the equation
    by SciPy's `least_squares`. Newton's method solves it here to the rounding. The
    official code then multiplies the update by N and clips it to the norm 1. TorchJD
    takes alpha = 0 as the mean of the gradients, which the paper calls linear
    scalarisation; that is `optim.weighted_sum`.

    If zero is in the convex hull of the gradients there is no solution: the weights
    grow until roundings stop them. A gradient of zero takes no part. The range of norms
    is that of `from_gram`, but unless alpha is 1 the tasks' norms must not differ by
    more than 1e6. The extra argument `active` is that of `from_gram`.

    Args:
      alpha: positive; 1 by default in the official code.

    Returns:
      An `optax.experimental.aggregating.Aggregator` without state.

    Raises:
      ValueError: if alpha is not positive.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.fairgrad(1.0), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[4.0, 0.0], [0.0, 0.5]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(np.round(updates, 4))
      [-1. -1.]

    References:
      Ban and Ji, `Fair Resource Allocation in Multi-Task Learning
      <https://arxiv.org/abs/2402.15638>`_, ICML 2024, equation 4, algorithm 1.
    """
    _arguments.require(alpha > 0, f"alpha is {alpha}, it must be positive")

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        present = active & (jnp.diagonal(gram) > 0)
        identity = jnp.eye(len(gram), dtype=gram.dtype)
        gram = jnp.where(jnp.outer(present, present), gram, identity)
        return jnp.where(present, _convex.fair_point(gram, alpha), 0), state

    return from_gram(weights_fn, optax.init_empty_state)
