"""Steps that visit the tasks in turn, each gradient taken where the last task left off.

The gradient of task k depends on the step of task k - 1, so these are not optax
transformations of gradients already at hand: their `update` is given a function that
computes a task's gradient, and scans over the tasks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

Params = Any
Carry = Any

TaskGradient = Callable[
    [jax.Array, Params, Carry], tuple[tuple[jax.Array, Carry], Params]
]


class SequentialOptimizer(NamedTuple):
    """A pair of pure functions, like `optax.GradientTransformation`.

    Attributes:
      init: maps params to the optimizer's state.
      update: `(task_gradient, state, params, carry=None, active=None) -> (params,
        state, carry, losses)`. `task_gradient(task, params, carry)` returns `((loss,
        carry), gradient)` for the task with that (traced) index, see `task_gradients`.
        `carry` is anything that passes from task to task, such as batch statistics.
        `active`, bool [N], says which tasks take part; the others are not evaluated,
        move nothing, keep their state, and have loss 0. `losses` is
        float32 [N].
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any, Carry, jax.Array]]


def independent(
    tx: optax.GradientTransformation, num_tasks: int
) -> SequentialOptimizer:
    """MTL-IO: every task steps in turn through an optimizer state of its own.

    For k = 1..N in turn, w <- w - tx_k(g_k(w)): task k's gradient is taken at the
    parameters that task k - 1 left, and tx_k, say Adam's moving averages, sees the
    gradients of task k only. The N states are stacked on a leading axis and scanned.

    Args:
      tx: any optax transformation; each task has its own state of it. One that moves
        parameters whose gradient is zero, such as weight decay, does so at every
        task's step, those of other tasks' heads included; `optax.masked` limits it.
      num_tasks: N. With one task this is plain `tx`.

    Returns:
      A `SequentialOptimizer`.

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
      >>> gradient = optim.task_gradients(losses)
      >>> w, state, _, values = jax.jit(
      ...     lambda w, state: optimizer.update(gradient, state, w)
      ... )(w, state)
      >>> values.shape
      (2,)

    References:
      Pascal et al., `Multi-task deep learning for glaucoma detection from color
      fundus images <https://doi.org/10.1038/s41598-022-16262-8>`_, Scientific Reports
      2022, equation 3.
    """

    def init_fn(params):
        return jax.vmap(lambda _: tx.init(params))(jnp.arange(num_tasks))

    def update_fn(task_gradient, state, params, carry=None, active=None):
        def step(operand):
            task, params, carry, task_state = operand
            (loss, carry), gradient = task_gradient(task, params, carry)
            updates, task_state = tx.update(gradient, task_state, params)
            params = optax.apply_updates(params, updates)
            return params, carry, task_state, loss.astype(jnp.float32)

        def skip(operand):
            _, params, carry, task_state = operand
            return params, carry, task_state, jnp.zeros((), jnp.float32)

        def visit(point, task):
            index, is_active, task_state = task
            operand = (index, *point, task_state)
            if is_active is None:
                params, carry, task_state, loss = step(operand)
            else:
                params, carry, task_state, loss = lax.cond(
                    is_active, step, skip, operand
                )
            return (params, carry), (task_state, loss)

        tasks = (jnp.arange(num_tasks), active, state)
        (params, carry), (state, losses) = lax.scan(visit, (params, carry), tasks)
        return params, state, carry, losses

    return SequentialOptimizer(init_fn, update_fn)


def task_gradients(
    losses: Sequence[Callable[[Params, Carry], tuple[jax.Array, Carry]]],
) -> TaskGradient:
    """Joins one loss function per task into the function that `update` wants.

    Differentiation happens inside the branches of a `lax.switch`: differentiating the
    switch instead would keep the intermediate results of all branches.

    Args:
      losses: functions `(params, carry) -> (scalar loss, carry)`.

    Returns:
      `(task, params, carry) -> ((loss, carry), gradient)`.
    """
    branches = [jax.value_and_grad(loss, has_aux=True) for loss in losses]

    def task_gradient(task, params, carry):
        return lax.switch(task, branches, params, carry)

    return task_gradient
