"""PCGrad: gradients are projected off those that they conflict with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim import _task_axis


class PCGradState(NamedTuple):
    """State of `pcgrad`.

    Attributes:
      count: int32, steps made; with the key it gives the next step's random orders.
      num_conflicts: int32, from 0 to N (N - 1), projections made in the last step: the
        ordered pairs (i, j) for which task i's gradient, as the projections before had
        left it, had a negative inner product with task j's own gradient.
    """

    count: jax.Array
    num_conflicts: jax.Array


def pcgrad(key: jax.Array) -> optax.GradientTransformationExtraArgs:
    """Projects each task's gradient off the gradients that it conflicts with.

    For every task i, the other tasks j are visited in random order, drawn anew for each
    task and step; where the gradient as it has become has a negative inner product with
    g_j, its component along g_j is taken off. The results are added up.

    All of that happens in the coefficients of g_1..g_N, by way of the N x N matrix of
    their inner products. So the gradients are read twice, once for the inner products
    (accumulated in float32) and once to combine them, and no projected gradient is ever
    stored. A gradient of zero conflicts with nothing.

    Gradients of every scale that float32 has, 1e-20 and 1e20 at once, are treated
    alike. Where a task's squared norm is outside of 2^-60 to 2^60, as zero is, that
    costs two more readings and a copy: the inner products are taken once more, of
    gradients divided by powers of two near their largest absolute values. The extra
    argument `active` of `update` (bool [N], None for all) spares this to tasks whose
    gradients are known to be zero.

    Args:
      key: for the random orders. It is no part of the state, which checkpoints as two
        plain numbers; it is not a hyperparameter either, so `optax.inject_hyperparams`
        wants `static_args="key"`.

    Returns:
      A transformation that takes updates with a leading task axis, [N, ...], to
      updates without it.

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

    def update_fn(updates, state, params=None, *, active=None, **extra_args):
        del extra_args
        n = _task_axis.num_tasks(updates, params)
        if n is None:
            return updates, state
        orders = _random_orders(key, state.count, n)
        active = None if active is None else jnp.asarray(active)
        gram, exponents = _task_axis.gram(updates, n, active)
        coefficients, conflicts = _project(gram, orders)
        updates = _combine(coefficients, exponents, updates)
        return updates, PCGradState(optax.safe_increment(state.count), conflicts)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _random_orders(key: jax.Array, count: jax.Array, n: int) -> jax.Array:
    """For each task (row), all tasks in random order; its own turn is passed over."""
    tasks = jnp.broadcast_to(jnp.arange(n), (n, n))
    key = jax.random.fold_in(key, count)
    return jax.random.permutation(key, tasks, axis=1, independent=True)


def _combine(coefficients, exponents, updates):
    """The sum over i and j of 2^e_i coefficients[i, j] 2^-e_j g_j."""
    # As no coefficient is negative and the diagonal is 1, the weight of g_j is between
    # 1 and about the largest 2^(e_i - e_j). That may be too large a number; half of its
    # exponent goes to g_j, which is small then, and no factor leaves float32's range.
    half = (exponents.max() - exponents) // 2
    weights = jnp.ldexp(coefficients, exponents[:, None] - exponents - half).sum(0)
    return _task_axis.combine(weights, updates, half)


def _project(gram: jax.Array, orders: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coefficients [N, N] of the projected gradients (rows), number of projections."""
    tasks = jnp.arange(len(gram))

    def visit(carry, others):
        coefficients, conflicts = carry
        # Of every task's gradient, as it has become, with that of its turn's task.
        inner = (coefficients * gram[others]).sum(1)
        square = gram[others, others]
        # A gradient of zero: its inner products are zero too, but for rounding.
        is_conflict = (inner < 0) & (others != tasks) & (square > 0)
        component = jnp.where(is_conflict, inner / jnp.where(square > 0, square, 1), 0)
        coefficients = coefficients.at[tasks, others].add(-component)
        return (coefficients, conflicts + is_conflict.sum(dtype=jnp.int32)), None

    start = jnp.eye(len(gram), dtype=gram.dtype), jnp.zeros((), jnp.int32)
    return lax.scan(visit, start, orders.T)[0]
