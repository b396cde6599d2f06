"""PCGrad: gradients are projected off those that they conflict with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim._from_gram import WeightedAggregator, from_gram


class PCGradState(NamedTuple):
    """State of `pcgrad`.

    Attributes:
      count: int32, steps made; with the key it gives the next step's random orders.
      num_conflicts: int32, projections made in the last step, from 0 to N (N - 1).
    """

    count: jax.typing.ArrayLike
    num_conflicts: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `conflicts`, the projections of the last step."""
        return {"conflicts": self.num_conflicts}


def pcgrad(key: jax.Array) -> WeightedAggregator:
    """Projects each task's gradient off the gradients that it conflicts with.

    For every task i, the other tasks j are visited in a random order, which is drawn
    anew for each task and step. If the gradient of task i, as the visits so far have
    left it, has a negative inner product with g_j, its component along g_j is removed.
    The results are summed. A gradient of zero conflicts with nothing.

    The orders are those of the paper and of TorchJD. The official code always visits
    the tasks from first to last. It and LibMTL may also project a gradient off its own
    original.

    The projections are computed on the coefficients of g_1..g_N, see `from_gram`: no
    projected gradient is stored. The range of norms is that of `from_gram`, and so is
    the extra argument `active`.

    Args:
      key: for the random orders. It is not part of the state, so that a checkpoint
        holds two plain numbers. It is not a hyperparameter either:
        `optax.inject_hyperparams` needs `static_args="key"`.

    Returns:
      A `WeightedAggregator`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.pcgrad(jax.random.key(0)), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[1.0, 0.0], [-1.0, 1.0]])  # One row for each task.
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> print(updates)  # Minus the sum of [0.5, 0.5] and [0, 1].
      [-0.5 -1.5]
      >>> int(state[0].num_conflicts)
      2

    References:
      Yu et al., `Gradient Surgery for Multi-Task Learning
      <https://arxiv.org/abs/2001.06782>`_, NeurIPS 2020, algorithm 1.
    """

    def init_fn(params):
        del params
        return PCGradState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def weights_fn(gram, state, **extra_args):
        del extra_args
        orders = random_orders(key, state.count, len(gram))
        coefficients, conflicts = _project(gram, orders)
        state = PCGradState(optax.safe_increment(state.count), conflicts)
        return coefficients.sum(0), state

    return from_gram(weights_fn, init_fn)


def random_orders(key: jax.Array, count: jax.Array, n: int) -> jax.Array:
    """For each task (row), all tasks in random order; its own turn is passed over."""
    tasks = jnp.broadcast_to(jnp.arange(n), (n, n))
    key = jax.random.fold_in(key, count)
    return jax.random.permutation(key, tasks, axis=1, independent=True)


def _project(gram: jax.Array, orders: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coefficients [N, N] of the projected gradients (rows), number of projections."""
    tasks = jnp.arange(len(gram))

    def visit(carry, others):
        coefficients, conflicts = carry
        # Each task's gradient, as it is now, times that of the task it visits.
        inner = (coefficients * gram[others]).sum(1)
        square = gram[others, others]
        # The inner products with a gradient of zero are zero but for rounding.
        is_conflict = (inner < 0) & (others != tasks) & (square > 0)
        component = jnp.where(is_conflict, inner / jnp.where(square > 0, square, 1), 0)
        coefficients = coefficients.at[tasks, others].add(-component)
        return (coefficients, conflicts + is_conflict.sum(dtype=jnp.int32)), None

    start = jnp.eye(len(gram), dtype=gram.dtype), jnp.zeros((), jnp.int32)
    return lax.scan(visit, start, orders.T)[0]
