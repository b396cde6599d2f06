"""Optimizers that change with the number of steps made."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim._sequential import SequentialOptimizer

Optimizer = SequentialOptimizer | optax.GradientTransformation


class ByStepState(NamedTuple):
    """State of `by_step`.

    Attributes:
      count: int32, calls of `update`.
      inner: state of the optimizer.
    """

    count: jax.typing.ArrayLike
    inner: optax.OptState


def by_step(make: Callable[[jax.Array], Optimizer]) -> Optimizer:
    """Makes an optimizer anew at every step, given the number of steps before it.

    A schedule inside a sequential optimizer counts the steps of its own state. There
    may be one state per task or one for all, and a state may skip steps at which its
    task is not active. `by_step` counts the calls of the outer `update` instead.

    Args:
      make: maps the count, an int32 scalar (traced under `jax.jit`), to an optimizer.
        The states of all these optimizers must have the same structure.

    Returns:
      An optimizer of the kind that `make` returns: a `SequentialOptimizer`, an
      `optax.experimental.aggregating.Aggregator`, or an
      `optax.GradientTransformationExtraArgs`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optim.by_step(lambda count: optax.sgd(jnp.where(count < 1, 0.0, 1.0)))
      >>> w = jnp.ones(1)
      >>> state = tx.init(w)
      >>> for _ in range(2):
      ...     update, state = tx.update(w, state)
      ...     print(update)
      [-0.]
      [-1.]
    """
    first = make(jnp.zeros((), jnp.int32))

    def init_fn(params):
        return ByStepState(jnp.zeros((), jnp.int32), first.init(params))

    def after(state, inner):
        return ByStepState(optax.safe_increment(state.count), inner)

    if isinstance(first, SequentialOptimizer):

        def update_fn(task_gradients, state, params, carry=None, active=None):
            optimizer = make(state.count)
            assert isinstance(optimizer, SequentialOptimizer), "as at the first step"
            params, inner, carry, losses = optimizer.update(
                task_gradients, state.inner, params, carry, active
            )
            return params, after(state, inner), carry, losses

        return SequentialOptimizer(init_fn, update_fn)

    def joint_update_fn(updates, state, params=None, **extra_args):
        tx = make(state.count)
        assert not isinstance(tx, SequentialOptimizer), "as at the first step"
        updates, inner = optax.with_extra_args_support(tx).update(
            updates, state.inner, params, **extra_args
        )
        return updates, after(state, inner)

    # An aggregator stays one.
    return optax.with_extra_args_support(first)._replace(
        init=init_fn, update=joint_update_fn
    )
