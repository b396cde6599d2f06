"""PCD: a primary task's gradient, bent until the others get a share of progress."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.optim import _arguments, _task_axis
from mtl_jax.optim._convex import nonnegative_qp
from mtl_jax.optim._from_gram import WeightedAggregator, from_gram


class PCDState(NamedTuple):
    """State of `pcd`.

    Attributes:
      counts: int32 [N], steps in which each task was active.
      squares: [N], moving averages of the squared norms, not yet corrected for bias.
    """

    counts: jax.Array
    squares: jax.Array


def pcd(
    num_tasks: int,
    tau: jax.typing.ArrayLike = 0.02,
    beta: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
) -> WeightedAggregator:
    """Follows the first task as closely as the progress of the others allows.

    The gradients are normalised, n_k = g_k / sqrt(v_k + eps), where v_k is the moving
    average of |g_k|^2, corrected for bias as in Adam. The update is the d nearest to
    n_1 with <n_k, d> >= tau |n_k|^2 for all other k, scaled to the length of g_1.

    The problem is solved in terms of the unit gradients and of N - 1 multipliers, by an
    interior point method instead of the official code's enumeration and TorchJD's
    active sets, which have the same minimum. As in both, the update is g_1 if no d
    meets all conditions (in float32 they must miss by 3e-4), and 0 if g_1 or d is 0. A
    gradient of zero sets no condition. If the first task is not active, the update is
    0.

    The range of norms is that of `from_gram`, and so is the extra argument `active`. A
    task that is not active keeps its average.

    Args:
      num_tasks: N. Task 0 is the primary one.
      tau: from 0 to 1, the share of the progress of a step along its own gradient
        that each other task is given; a number, or [N - 1].
      beta: share of the old in the moving averages, from 0 to below 1.
      eps: added to the averages of the squares.

    Returns:
      A `WeightedAggregator`.

    Raises:
      ValueError: if a parameter is out of range or `tau` is of another length; by
        `update` if the gradients are not of N tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.pcd(2, tau=0.0), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[5.0, 0.0], [-3.0, 3.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> [round(float(x), 3) for x in updates]  # Along [1, 1], of length 5.
      [-3.536, -3.536]

    References:
      Varam and AlHajri, `Not All Objectives Are Born Equal: Priority-Constrained
      Descent for Hierarchical Multi-Objective Optimization
      <https://openreview.net/forum?id=HT01yGHLEt>`_, TMLR 2026.
    """
    tau = jnp.asarray(tau)
    _arguments.require_range("tau", tau, 0, 1)
    _arguments.require(
        (beta >= 0) & (beta < 1), f"beta must be at least 0 and less than 1, got {beta}"
    )
    _arguments.require_range("eps", eps, 0)
    if tau.ndim:
        tau = _arguments.one_per_task(
            "tau, of all tasks but the first,", tau, num_tasks - 1
        )
        tau = jnp.concatenate([jnp.zeros(1), tau])

    def init_fn(params):
        del params
        return PCDState(jnp.zeros(num_tasks, jnp.int32), jnp.zeros(num_tasks))

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        _task_axis.check_num_tasks(len(gram), num_tasks)
        counts = state.counts + active
        new = beta * state.squares + (1 - beta) * jnp.diagonal(gram)
        squares = jnp.where(active, new, state.squares)
        # 1 - beta^count, which would lose digits in float32.
        correction = -jnp.expm1(jnp.maximum(counts, 1) * jnp.log(beta))
        scales = _task_axis.inverse(jnp.sqrt(squares / correction + eps))
        return _direction(gram, scales, tau), PCDState(counts, squares)

    return from_gram(weights_fn, init_fn)


def _direction(gram, scales, tau):
    """Weights [N] of the update for the gradients, which `scales` normalise."""
    norms, cosines = _task_axis.norms_and_cosines(gram)
    first = jnp.arange(len(gram)) == 0
    # d / |n_1| = u_1 + sum_k m_k u_k, with m >= 0; m_k > 0 only where <u_k, d> is just
    # what it has to be.
    lengths = scales * norms
    least = tau * lengths * _task_axis.inverse(lengths[0])
    is_bound = ~first & (norms > 0)
    missing = jnp.where(is_bound, least - cosines[0], -1)
    matrix = jnp.where(jnp.outer(is_bound, is_bound), cosines, 0)
    matrix = jnp.where(jnp.eye(len(gram), dtype=bool), 1, matrix)
    # m grows as what is missing.
    size = jnp.maximum(jnp.abs(missing).max(), 1)
    multipliers = nonnegative_qp(matrix, missing / size) * size
    given = (matrix * multipliers).sum(1)
    tolerance = jnp.sqrt(jnp.finfo(gram.dtype).eps)
    is_met = (given - missing >= -tolerance * size).all()
    units = jnp.where(is_bound & is_met, multipliers, 0) + first
    square = units @ (cosines * units).sum(1)
    is_zero = square <= _task_axis.rounding(gram) * jnp.abs(units).sum() ** 2
    length = jnp.where(is_zero, 0, norms[0] / jnp.sqrt(jnp.where(is_zero, 1, square)))
    return length * units * _task_axis.inverse(norms)
