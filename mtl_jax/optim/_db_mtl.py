"""DB-MTL: gradients of logarithms of the losses, all made as long as the longest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _task_axis

# Added to the losses, as in LibMTL.
_EPS = 1e-8


class DBMTLState(NamedTuple):
    """State of `db_mtl`.

    Attributes:
      counts: int32 [N], steps in which each task was active.
      averages: tree with leaves [N, ...], at least float32, moving averages of the
        gradients of log L_k.
    """

    counts: jax.Array
    averages: optax.Updates


def db_mtl(
    num_tasks: int,
    beta: float | jax.Array = 0.9,
    beta_sigma: float | jax.Array = 0.0,
) -> aggregating.Aggregator:
    """Sums the gradients of log L_k, averaged over steps and scaled to the longest.

    In step t, the moving average of task k's gradient becomes b a_k + (1 - b) g_k /
    (L_k + 1e-8), where b = beta / t^beta_sigma. It starts from 0. The update is
    max_j |a_j| sum_k a_k / |a_k|. An average of 0 takes no part.

    The paper's algorithm and LibMTL add 1e-8 to |a_k| too; here nothing is added, so
    that the update scales with the averages. LibMTL does this for the shared parameters
    only, and its heads have the gradients of log L_k. TorchJD 0.18 has no DB-MTL.

    The paper searches beta among 0.1, 0.5 and 0.9, and sigma among 0 and 0.5; the
    defaults are those of LibMTL. Adam after it averages once more, and then a beta of
    0.9 can be far worse than one of 0.1.

    `update` takes the extra arguments `task_losses` (float [N], not weighted, required)
    and `active` (bool [N], None for all). A task that is not active is not read, and
    keeps its average and its count of steps. A negative loss has no logarithm: the
    update becomes NaN. The norm of g_k / (L_k + 1e-8) must be 0 or between 1e-15 and
    1e15.

    Args:
      num_tasks: N.
      beta: share of the average in the first step, from 0 to 1; less than 1 if
        beta_sigma is 0.
      beta_sigma: how fast this share falls, not negative.

    Returns:
      An `optax.experimental.aggregating.Aggregator`. Its state has the size of N
      gradients.

    Raises:
      ValueError: if a parameter is out of range; by `update` if `task_losses` are
        missing or not [N], or the gradients are not of N tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.db_mtl(2, beta=0.0), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(
      ...     gradients, tx.init(params), params, task_losses=jnp.array([2.0, 1.0])
      ... )
      >>> print(updates)  # The gradients of the logarithms have norms 2 and 1.
      [-2. -2.]

    References:
      Lin et al., `Dual-Balancing for Multi-Task Learning
      <https://arxiv.org/abs/2308.12029>`_, 2023, algorithm 1.
    """
    _arguments.require_range("beta", beta, 0, 1)
    _arguments.require_range("beta_sigma", beta_sigma, 0)
    _arguments.require(
        jnp.all((jnp.asarray(beta) < 1) | (jnp.asarray(beta_sigma) > 0)),
        f"beta must be less than 1 where beta_sigma is 0, got {beta}: the averages "
        "would stay 0, and so would all updates",
    )

    def init_fn(params):
        return DBMTLState(
            jnp.zeros(num_tasks, jnp.int32), _task_axis.zeros(params, num_tasks)
        )

    def update_fn(
        per_elt_updates,
        state,
        params=None,
        *,
        active=None,
        task_losses=None,
        **extra_args,
    ):
        del extra_args
        n = _task_axis.num_tasks(per_elt_updates, params)
        if n is None:
            return per_elt_updates, state
        _task_axis.check_num_tasks(n, num_tasks)
        if task_losses is None:
            raise ValueError(
                "db_mtl takes the logarithms of the losses: pass update(..., "
                "task_losses=...), one number per task"
            )
        losses = _arguments.one_per_task("task_losses", task_losses, n)
        is_active = jnp.broadcast_to(True if active is None else active, (n,))
        counts = state.counts + is_active
        decay = beta / jnp.maximum(counts, 1) ** beta_sigma
        new = (1 - decay) / jnp.where(losses < 0, jnp.nan, losses + _EPS)
        # A task that is not active keeps all of its average.
        decay, new = jnp.where(is_active, decay, 1), jnp.where(is_active, new, 0)
        wide = jax.tree.map(_task_axis.widened, per_elt_updates)
        averages = jax.tree.map(
            jnp.add,
            _task_axis.scale(decay, state.averages),
            _task_axis.scale(new, _task_axis.of_active(active, wide)),
        )
        norms = jnp.where(is_active, _task_axis.norms(averages), 0)
        updates = _task_axis.combine(norms.max() * _task_axis.inverse(norms), averages)
        updates = jax.tree.map(
            lambda update, leaf: update.astype(leaf.dtype), updates, per_elt_updates
        )
        return updates, DBMTLState(counts, averages)

    return aggregating.Aggregator(init_fn, update_fn)
