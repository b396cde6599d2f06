"""MTL-IO: the tasks step in turn, each through an optimizer state of its own."""

import functools

import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim import _task_axis
from mtl_jax.optim._sequential import SequentialOptimizer, checked_active, step_or_skip


def independent(
    tx: optax.GradientTransformation, num_tasks: int
) -> SequentialOptimizer:
    """MTL-IO: every task steps in turn through its own optimizer state.

    For k = 1..N in turn, w <- w - tx_k(g_k(w)). The gradient of task k is taken at the
    parameters that task k - 1 left. The state tx_k, such as Adam's moving averages,
    sees the gradients of task k only. The N states are stacked on a leading axis.

    Args:
      tx: any optax transformation; each task has its own state of it. Weight decay
        also moves parameters whose gradient is zero, and does so at every task's step,
        the heads of other tasks included. `optax.masked` limits it.
      num_tasks: N. With one task this is plain `tx`.

    Returns:
      A `SequentialOptimizer`. Its `update` raises a ValueError if the gradients are not
      of N tasks.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> losses = [
      ...     lambda w, carry: (jnp.sum((w - 1) ** 2), carry),
      ...     lambda w, carry: (jnp.sum((w + 1) ** 2), carry),
      ... ]
      >>> optimizer = optim.independent(optax.adam(0.1), num_tasks=2)
      >>> w = jnp.zeros(3)
      >>> state = optimizer.init(w)
      >>> gradients = optim.task_gradients(losses)
      >>> w, state, _, values = jax.jit(
      ...     lambda w, state: optimizer.update(gradients, state, w)
      ... )(w, state)
      >>> values.shape
      (2,)

    References:
      Pascal et al., `Multi-task deep learning for glaucoma detection from color
      fundus images <https://doi.org/10.1038/s41598-022-16262-8>`_, Scientific Reports
      2022, equation 3.
    """

    def init_fn(params):
        return _task_axis.init_stacked(tx, params, num_tasks)

    def update_fn(task_gradients, state, params, carry=None, active=None):
        active = checked_active(task_gradients, active)
        _task_axis.check_num_tasks(task_gradients.num_tasks, num_tasks)

        def visit(point, task):
            params, carry, states = point
            index, is_active = task
            gradient = functools.partial(task_gradients.of_task, index)
            params, carry, states, loss = step_or_skip(
                tx, gradient, is_active, params, carry, states, jnp.float32(0), index
            )
            return (params, carry, states), loss

        (params, carry, state), losses = lax.scan(
            visit, (params, carry, state), (jnp.arange(num_tasks), active)
        )
        return params, state, carry, losses

    return SequentialOptimizer(init_fn, update_fn)
