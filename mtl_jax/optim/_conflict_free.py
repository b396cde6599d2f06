"""ConFIG: an update with equal positive cosines with all gradients."""

import jax.numpy as jnp
import optax

from mtl_jax.optim import _arguments, _task_axis
from mtl_jax.optim._from_gram import WeightedAggregator, from_gram


def conflict_free(
    pref_vector: _arguments.Preferences = None,
) -> WeightedAggregator:
    """Goes where all gradients have the same positive cosine with the update (ConFIG).

    Let u_k = g_k / |g_k|, and x the smallest vector with <u_k, x> = p_k for all k. The
    update has the direction of x, and its length is the sum of the gradients'
    projections on x. Up to N = D independent gradients, no task is in conflict with it.

    A gradient of zero takes no part. If the gradients are linearly dependent, x is the
    least-squares solution. If that is 0, as with two opposite gradients, so is the
    update. Solutions shorter than 1e-3 are not told from 0 in float32.

    x is computed by a pseudo-inverse of the Gram matrix of the unit gradients, and so
    is stable for gradients of any lengths. TorchJD takes the pseudo-inverse of the
    [N, D] matrix itself, and so can the official code, which by default has a formula
    for two gradients and least squares for more.

    The range of norms is that of `from_gram`, and so is the extra argument `active`.

    Args:
      pref_vector: p, [N], not negative; all the same by default. Its length makes no
        difference.

    Returns:
      A `WeightedAggregator`.

    Raises:
      ValueError: if `pref_vector` is not a vector of such numbers; by `update` if its
        length is not N.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.conflict_free(), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[3.0, 0.0], [0.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> [round(float(x), 3) for x in updates]
      [-2.0, -2.0]

    References:
      Liu et al., `ConFIG: Towards Conflict-free Training of Physics Informed Neural
      Networks <https://arxiv.org/abs/2408.11104>`_, ICLR 2025, equation 2.
    """
    pref_vector = _arguments.checked_preferences(pref_vector)

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        pref = _arguments.preferences(pref_vector, active, gram.dtype)
        norms, cosines = _task_axis.norms_and_cosines(gram)
        # Of x and then of the update, the coefficients of the unit gradients.
        units = (jnp.linalg.pinv(cosines, hermitian=True) * pref).sum(1)
        projections = (cosines * units).sum(1)
        square = units @ projections
        is_zero = square <= _task_axis.rounding(gram) * (pref @ pref)
        length = jnp.where(is_zero, 0, (norms @ projections) / square)
        return length * units * _task_axis.inverse(norms), state

    return from_gram(weights_fn, optax.init_empty_state)
