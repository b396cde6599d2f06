"""One optimizer state per task, all gradients taken at the same parameters."""

import functools

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _task_axis


def per_task(
    tx: optax.GradientTransformation, num_tasks: int
) -> aggregating.Aggregator:
    """Passes each task's gradient through its own state of `tx`, and sums the updates.

    This is `independent` with all gradients taken at the same parameters: one forward
    pass instead of N. The aggregator is usually the last transformation, since `tx` is
    a complete optimizer.

    `update` takes the extra argument `active`, bool [N] (None for all). A task that is
    not active moves nothing and keeps its state. All other extra arguments are passed
    on to `tx`.

    Args:
      tx: any optax transformation. Whatever it adds to a gradient, such as weight
        decay, is added once for every active task.
      num_tasks: N.

    Returns:
      An `optax.experimental.aggregating.Aggregator`. Its state is that of `tx` with a
      leading axis [N] on every leaf.

    Raises:
      ValueError: by `update` if the gradients are not of N tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optim.per_task(optax.sign_sgd(1.0), num_tasks=2)
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[9.0, -1.0], [0.0, -5.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(updates)
      [-1.  2.]
    """
    tx = optax.with_extra_args_support(tx)

    def init_fn(params):
        return _task_axis.init_stacked(tx, params, num_tasks)

    def update_fn(per_elt_updates, state, params=None, *, active=None, **extra_args):
        n = _task_axis.num_tasks(per_elt_updates, params)
        _task_axis.check_num_tasks(n, num_tasks)
        update = functools.partial(tx.update, params=params, **extra_args)
        updates, new_state = jax.vmap(update, axis_size=num_tasks)(
            per_elt_updates, state
        )
        updates = _task_axis.of_active(active, updates)
        if active is not None:
            new_state = _task_axis.select(jnp.asarray(active), new_state, state)
        return _task_axis.combine(jnp.ones(num_tasks), updates), new_state

    return aggregating.Aggregator(init_fn, update_fn)
