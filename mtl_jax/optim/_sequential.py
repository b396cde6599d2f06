"""Steps that follow each other, each gradient taken where the last step ended.

The gradient of one step depends on the step before, so these are not optax
transformations of gradients already at hand: their `update` is given a `TaskGradients`
to ask, and scans over the steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim._task_gradients import Carry, LossAndGradient, TaskGradients


class SequentialOptimizer(NamedTuple):
    """A pair of pure functions, like `optax.GradientTransformation`.

    Attributes:
      init: maps params to the optimizer's state.
      update: `(task_gradients, state, params, carry=None, active=None) -> (params,
        state, carry, losses)`. `task_gradients` is a `TaskGradients`. `carry` is
        anything that passes from step to step, such as batch statistics. `active`,
        bool [N], says which tasks take part, None that all do; the others are not
        evaluated, move nothing, keep their state, and have loss 0. `losses` is float32
        [N], each where its task's step began.
    """

    init: Callable[[optax.Params], Any]
    update: Callable[..., tuple[optax.Params, Any, Carry, jax.Array]]


@jax.custom_batching.custom_vmap
def _in_any_run(predicate: jax.Array) -> jax.Array:
    """A predicate; of runs mapped by `jax.vmap`, whether it holds for any of them.

    `lax.cond` stays a choice only on what the runs agree on. On a predicate of each run
    it would compute both branches, and treat whatever they read, such as the index of
    the task, as different in each run.
    """
    return predicate


@_in_any_run.def_vmap
def _(axis_size, in_batched, predicate):
    del axis_size, in_batched
    # Anew, as there may be another axis of runs.
    return _in_any_run(predicate.any(axis=0)), False


def step_or_skip(
    tx: optax.GradientTransformation,
    loss_and_gradient: Callable[[optax.Params, Carry], LossAndGradient],
    is_active: jax.Array | None,
    params: optax.Params,
    carry: Carry,
    state: optax.OptState,
    no_loss: jax.Array,
) -> tuple[optax.Params, Carry, optax.OptState, jax.Array]:
    """One step of `tx`; where `is_active` is False nothing at all is computed.

    Of runs mapped by `jax.vmap` all compute a step that any of them makes.

    Args:
      tx: the optax transformation whose `state` it is.
      loss_and_gradient: gives `((loss, carry), gradient)` at `(params, carry)`.
      is_active: bool, or None for a step in any case.
      params: where the gradient is taken.
      carry: passed through the gradient's evaluation.
      state: of `tx`.
      no_loss: float32, the loss of a step that is skipped.

    Returns:
      Parameters, carry and state after the step, and the loss before it, float32.
    """

    def step(params, carry, state):
        (loss, carry), gradient = loss_and_gradient(params, carry)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return params, carry, state, loss.astype(jnp.float32)

    def skip(params, carry, state):
        return params, carry, state, no_loss

    def step_if_active(*point):
        return jax.tree.map(
            functools.partial(jnp.where, is_active), step(*point), skip(*point)
        )

    if is_active is None:
        return step(params, carry, state)
    return lax.cond(_in_any_run(is_active), step_if_active, skip, params, carry, state)


def checked_active(task_gradients: TaskGradients, active: Any) -> jax.Array | None:
    """`active` as an array, after a look at both arguments of `update`."""
    if not isinstance(task_gradients, TaskGradients):
        raise TypeError(
            "update wants the TaskGradients that optim.task_gradients makes, got "
            f"{type(task_gradients).__name__}"
        )
    if active is None:
        return None
    active = jnp.asarray(active)
    chex.assert_shape(active, (task_gradients.num_tasks,))
    return active
