"""Trimmed mean: of each element, the mean without the largest and smallest values."""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _task_axis


def trimmed_mean(trim_number: int) -> aggregating.Aggregator:
    """Averages each element over the tasks, without its largest and smallest values.

    `trimmed_mean(0)` is the mean of the active tasks' gradients.

    `update` takes the extra argument `active`, bool [N] (None for all). The gradient of
    a task that is not active is not read. Of n active tasks, at most (n - 1) // 2
    values are removed at each end: the median is left, or the mean of the two in the
    middle.

    The values are sorted by a network of minima and maxima, which XLA fuses into one
    pass for up to 16 tasks; `jnp.sort` along this axis takes hundreds of times as long
    on a CPU. A NaN in the gradient of an active task makes the element NaN.

    Args:
      trim_number: values to remove at each end; N is at least 2 trim_number + 1.

    Returns:
      An `optax.experimental.aggregating.Aggregator` without state.

    Raises:
      ValueError: if `trim_number` is negative; by `update` if the gradients have no
        task axis, or N is too small.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.trimmed_mean(1), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[1.0, 5.0], [2.0, -999.0], [999.0, 6.0]])
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(updates)
      [-2. -5.]

    References:
      Yin et al., `Byzantine-Robust Distributed Learning: Towards Optimal Statistical
      Rates <https://arxiv.org/abs/1803.01498>`_, ICML 2018, Definition 2.
    """
    _arguments.require_range("trim_number", trim_number, 0)

    def update_fn(per_elt_updates, state, params=None, *, active=None, **extra_args):
        del extra_args
        n = _task_axis.num_tasks(per_elt_updates, params)
        if n is None:
            return per_elt_updates, state
        if n < 2 * trim_number + 1:
            raise ValueError(
                f"trimmed_mean({trim_number}) needs at least {2 * trim_number + 1} "
                f"tasks, the gradients are of {n}"
            )
        number = n if active is None else jnp.asarray(active).sum()
        if trim_number == 0:  # Nothing to sort.
            weights = jnp.full(n, 1 / jnp.maximum(number, 1))
            own = _task_axis.of_active(active, per_elt_updates)
            return _task_axis.combine(weights, own), state
        trim = jnp.minimum(trim_number, jnp.maximum(number - 1, 0) // 2)
        is_kept = (jnp.arange(n) >= trim) & (jnp.arange(n) < number - trim)

        def of_leaf(leaf):
            # Those of inactive tasks come last.
            last = jnp.full_like(leaf, jnp.inf)
            rows = leaf if active is None else _task_axis.select(active, leaf, last)
            # As one array they would be sorted once for each row of it.
            total = sum(
                jnp.where(keep, _task_axis.widened(row), 0)
                for keep, row in zip(is_kept, _sorted(list(rows)), strict=True)
            )
            return (total / jnp.maximum(is_kept.sum(), 1)).astype(leaf.dtype)

        return jax.tree.map(of_leaf, per_elt_updates), state

    return aggregating.Aggregator(optax.init_empty_state, update_fn)


def _sorted(rows: list[jax.Array]) -> list[jax.Array]:
    """Arrays in ascending order, element by element, by odd-even transposition."""

    def exchange(_, rows):
        rows = list(rows)
        for first in (0, 1):
            for i in range(first, len(rows) - 1, 2):
                low, high = rows[i], rows[i + 1]
                rows[i], rows[i + 1] = jnp.minimum(low, high), jnp.maximum(low, high)
        return rows

    # A longer network takes XLA minutes to compile.
    is_short = len(rows) <= 16
    return lax.fori_loop(0, (len(rows) + 1) // 2, exchange, rows, unroll=is_short)
