"""Steps that follow each other, each gradient taken where the last step ended.

The gradient of one step depends on the step before. So these are not optax
transformations of given gradients: `update` is given a `TaskGradients`, and asks it for
one gradient after the other inside a `lax.scan`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim import _task_axis
from mtl_jax.optim._task_gradients import Carry, LossAndGradient, TaskGradients


class SequentialOptimizer(NamedTuple):
    """A pair of pure functions, like `optax.GradientTransformation`.

    Attributes:
      init: maps params to the optimizer's state.
      update: `(task_gradients, state, params, carry=None, active=None) -> (params,
        state, carry, losses)`. `task_gradients` is a `TaskGradients`. `carry` is
        anything that passes from step to step, such as batch statistics. `active`,
        bool [N], says which tasks take part; None stands for all. A task that is not
        active is not evaluated, moves nothing, keeps its state, and has loss 0.
        `losses` is float32 [N], each taken where its task's step began.
    """

    init: Callable[[optax.Params], Any]
    update: Callable[..., tuple[optax.Params, Any, Carry, jax.Array]]


def step_or_skip(
    tx: optax.GradientTransformation,
    loss_and_gradient: Callable[[optax.Params, Carry], LossAndGradient],
    is_active: jax.Array | None,
    params: optax.Params,
    carry: Carry,
    state: optax.OptState,
    no_loss: jax.Array,
    slot: jax.Array | None = None,
) -> tuple[optax.Params, Carry, optax.OptState, jax.Array]:
    """One step of `tx`; where `is_active` is False nothing is computed.

    Args:
      tx: the optax transformation that `state` belongs to.
      loss_and_gradient: gives `((loss, carry), gradient)` at `(params, carry)`.
      is_active: bool, or None for a step in any case.
      params: where the gradient is taken.
      carry: passed through the gradient's evaluation.
      state: of `tx`; with `slot`, several of them stacked on a leading axis.
      no_loss: float32, the loss of a step that is skipped.
      slot: int32, which of the stacked states steps.

    Returns:
      Parameters, carry and state after the step, and the loss before it, float32.
    """

    # Taken inside the conditional, or XLA would copy it to the conditional first.
    def own(state):
        return state if slot is None else _task_axis.take(state, slot)

    def step(params, carry, state):
        (loss, carry), gradient = loss_and_gradient(params, carry)
        updates, new = tx.update(gradient, own(state), params)
        params = optax.apply_updates(params, updates)
        return params, carry, new, loss.astype(jnp.float32)

    def skip(params, carry, state):
        return params, carry, own(state), no_loss

    if is_active is None:
        params, carry, new, loss = step(params, carry, state)
    else:
        params, carry, new, loss = lax.cond(is_active, step, skip, params, carry, state)
    if slot is not None:
        new = _task_axis.put(state, slot, new)
    return params, carry, new, loss


def checked_active(task_gradients: TaskGradients, active: Any) -> jax.Array | None:
    """`active` as an array, after a look at both arguments of `update`."""
    if not isinstance(task_gradients, TaskGradients):
        raise TypeError(
            "update needs the TaskGradients that optim.task_gradients makes, got "
            f"{type(task_gradients).__name__}"
        )
    if active is None:
        return None
    active = jnp.asarray(active)
    chex.assert_shape(active, (task_gradients.num_tasks,))
    return active
