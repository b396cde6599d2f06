"""The tasks step in turn through one optimizer state."""

import functools

import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim._sequential import SequentialOptimizer, checked_active, step_or_skip


def alternating(tx: optax.GradientTransformation) -> SequentialOptimizer:
    """Every task steps in turn, all of them through the same optimizer state.

    For k = 1..N in turn, w <- w - tx(g_k(w)). The gradient of task k is taken at the
    parameters that task k - 1 left, as in `independent`. But there is one state of
    `tx`: Adam's moving averages, for instance, mix the gradients of all tasks.

    A parameter that task k does not use, such as another task's head, has a gradient of
    zeros at task k's step. It still takes part in the step: momentum moves it, and its
    averages decay. PyTorch does the same where `zero_grad` leaves zeros, which is the
    default before version 2.0 and `set_to_none=False` since. One difference remains:
    PyTorch's Adam counts the steps of a parameter from its first gradient on, and here
    all parameters have one count. PyTorch 2.0 by default skips a parameter without a
    gradient. To reproduce that, give a `tx` that treats every parameter on its own and
    keeps its value and state where its gradient is all zeros.

    Args:
      tx: any optax transformation. It makes N steps in one `update`, and its schedules
        count each of them.

    Returns:
      A `SequentialOptimizer` for any number of tasks. Its state is that of `tx`.

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
      >>> print(w, values)  # The second loss is taken at [0.5, 0.5].
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
            params, carry, state = point
            params, carry, state, loss = step_or_skip(
                tx, gradient, is_active, params, carry, state, jnp.float32(0)
            )
            return (params, carry, state), loss

        tasks = (jnp.arange(task_gradients.num_tasks), active)
        (params, carry, state), losses = lax.scan(visit, (params, carry, state), tasks)
        return params, state, carry, losses

    return SequentialOptimizer(tx.init, update_fn)
