"""The tasks step in turn through one optimizer state."""

import functools

import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim._sequential import SequentialOptimizer, checked_active, step_or_skip


def alternating(tx: optax.GradientTransformation) -> SequentialOptimizer:
    """Every task steps in turn, all of them through the same optimizer state.

    For k = 1..N in turn, w <- w - tx(g_k(w)): task k's gradient is taken at the
    parameters that task k - 1 left, as by `independent`, but the state of `tx`, say
    Adam's moving averages, passes from task to task and mixes their gradients.

    A parameter that task k does not touch, such as another task's head, has a gradient
    of zeros at task k's step, and takes part: momentum moves it on, and its averages
    decay. So it is where PyTorch's `zero_grad` leaves zeros: before version 2.0, which
    the paper's program was written for, and by `set_to_none=False` since. There a
    parameter has no gradient at all before its first one, and Adam counts its steps
    from then on to correct its averages; here all parameters have one count. By default
    PyTorch 2.0 leaves no gradient, and `step` passes over a parameter without one. For
    that, give a `tx` that treats every parameter by itself, and keeps its value and
    state where its gradient is all zeros.

    Args:
      tx: any optax transformation. It makes N steps in one `update`, and its schedules
        count every one of them.

    Returns:
      A `SequentialOptimizer`, of as many tasks as the `TaskGradients` it is given; its
      state is that of `tx`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> losses = [
      ...     lambda w, carry: (jnp.sum((w - 1) ** 2), carry),
      ...     lambda w, carry: (jnp.sum((w + 1) ** 2), carry),
      ... ]
      >>> optimizer = optim.alternating(optax.sgd(0.25))
      >>> w = jnp.zeros(2)
      >>> w, state, _, values = optimizer.update(
      ...     optim.task_gradients(losses), optimizer.init(w), w
      ... )
      >>> print(w, values)  # By way of [0.5, 0.5], where the second loss is taken.
      [-0.25 -0.25] [2.  4.5]

    References:
      Pascal et al., `Multi-task deep learning for glaucoma detection from color
      fundus images <https://doi.org/10.1038/s41598-022-16262-8>`_, Scientific Reports
      2022, equation 2.
    """

    def update_fn(task_gradients, state, params, carry=None, active=None):
        active = checked_active(task_gradients, active)

        def visit(point, task):
            index, is_active = task
            gradient = functools.partial(task_gradients.of_task, index)
            *point, loss = step_or_skip(tx, gradient, is_active, *point, jnp.float32(0))
            return tuple(point), loss

        tasks = (jnp.arange(task_gradients.num_tasks), active)
        (params, carry, state), losses = lax.scan(visit, (params, carry, state), tasks)
        return params, state, carry, losses

    return SequentialOptimizer(tx.init, update_fn)
