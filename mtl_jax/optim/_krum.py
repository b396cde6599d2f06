"""Krum: the gradients that lie nearest to the others."""

import jax.numpy as jnp
import optax

from mtl_jax.optim import _arguments
from mtl_jax.optim._from_gram import WeightedAggregator, from_gram


def krum(n_byzantine: int, n_selected: int = 1) -> WeightedAggregator:
    """Averages the gradients that lie nearest to the others.

    The score of a gradient is the sum of its distances to the N - f - 2 nearest others.
    The update is the mean of the m gradients with the smallest scores, of equal ones
    the first.

    As in TorchJD, the distances are not squared; those of the paper are. They are
    computed from the Gram matrix, so that distances below 1e-3 times the norms are lost
    in float32.

    The range of norms is that of `from_gram`, and so is the extra argument `active`. Of
    n active tasks, n takes the place of N, but one neighbour is counted at least, and
    at most n are selected.

    Args:
      n_byzantine: f, number of gradients that may be anything; N is at least f + 3.
      n_selected: m, from 1 to N. More than 1 is the paper's Multi-Krum.

    Returns:
      A `WeightedAggregator`.

    Raises:
      ValueError: if a number is out of range; by `update` if N is too small.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.krum(n_byzantine=1, n_selected=2), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [99.0, -99.0]])
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(updates)  # Minus the mean of the first two.
      [-1.  -0.5]

    References:
      Blanchard et al., `Machine Learning with Adversaries: Byzantine Tolerant Gradient
      Descent <https://arxiv.org/abs/1703.02757>`_, NeurIPS 2017,
      Section 4.
    """
    _arguments.require_range("n_byzantine", n_byzantine, 0)
    _arguments.require_range("n_selected", n_selected, 1)

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        n = len(gram)
        if n < (smallest := max(n_byzantine + 3, n_selected)):
            raise ValueError(
                f"krum({n_byzantine}, {n_selected}) needs at least {smallest} tasks, "
                f"the gradients are of {n}"
            )
        squares, places = jnp.diagonal(gram), jnp.arange(n)
        distances = jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2 * gram, 0))
        is_other = active & (places[:, None] != places)
        nearest = jnp.sort(jnp.where(is_other, distances, jnp.inf), axis=1)
        # Of no other task at all, the nearest is infinitely far.
        neighbours = jnp.minimum(
            jnp.maximum(active.sum() - n_byzantine - 2, 1), active.sum() - 1
        )
        scores = jnp.where(places < neighbours, nearest, 0).sum(1)
        order = jnp.argsort(jnp.where(active, scores, jnp.inf), stable=True)
        selected = jnp.minimum(n_selected, active.sum())
        weights = (places < selected) / jnp.maximum(selected, 1)
        return jnp.zeros(n).at[order].set(weights), state

    return from_gram(weights_fn, optax.init_empty_state)
