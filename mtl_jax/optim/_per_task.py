"""Optimizer states of the tasks' own, at one point."""

import functools

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim import _task_axis


def per_task(
    tx: optax.GradientTransformation, num_tasks: int
) -> optax.GradientTransformationExtraArgs:
    """Every task's gradient through a state of its own of `tx`; the updates add up.

    What `independent` does, but with all gradients taken at the same parameters: one
    forward pass instead of N. It ends a chain of transformations of task gradients, or
    stands before a learning rate.

    Its `update` takes the extra argument `active`, bool [N] (None for all): a task
    that is not active moves nothing, and its state stays as it is. All extra arguments
    but `active` are passed on to `tx`.

    Args:
      tx: any optax transformation. What it adds to a gradient, such as weight decay, is
        added once for every active task.
      num_tasks: N.

    Returns:
      A transformation that takes updates with a leading task axis, [N, ...], to
      updates without it. Its state is that of `tx`, with a leading axis [N] on every
      leaf.

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

    def update_fn(updates, state, params=None, *, active=None, **extra_args):
        _task_axis.num_tasks(updates, params, expected=num_tasks)
        update = functools.partial(tx.update, params=params, **extra_args)
        updates, new_state = jax.vmap(update, axis_size=num_tasks)(updates, state)
        if active is not None:
            active = jnp.asarray(active)
            updates = _task_axis.select(
                active, updates, jax.tree.map(jnp.zeros_like, updates)
            )
            new_state = _task_axis.select(active, new_state, state)
        return _task_axis.add_up(updates), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
