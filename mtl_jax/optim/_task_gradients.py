"""The gradients that a sequential optimizer asks for."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim import _paths

Carry = Any
LossAndGradient = tuple[tuple[jax.Array, Carry], optax.Updates]


class TaskGradients(NamedTuple):
    """Functions that compute gradients of several tasks' losses at given parameters.

    `carry` is anything that passes from one evaluation to the next, such as batch
    statistics.

    Attributes:
      num_tasks: N.
      of_task: `(index, params, carry) -> ((loss, carry), gradient)` for the task with
        that index, which may be traced.
      of_group: `(mask, params, carry) -> ((losses, carry), gradient)`. The gradient is
        that of the sum of the losses that `mask`, bool [N], selects. `losses` is
        float32 [N], 0 for tasks outside the group.
      of_weighted_sum: `(weigh, params, carry, active) -> ((losses, carry, aux),
        gradient)`. The gradient is that of sum_k w_k L_k, all losses taken at the same
        parameters, with `(w, aux) = weigh(losses, shared_gradients)`. The arguments of
        `weigh` are those of a `LossWeighting`. A task outside `active`, bool [N] or
        None, adds nothing to the gradient, even if its own is not finite. It may be
        None if no `weighted` optimizer calls it.
    """

    num_tasks: int
    of_task: Callable[[jax.Array, optax.Params, Carry], LossAndGradient]
    of_group: Callable[[jax.Array, optax.Params, Carry], LossAndGradient]
    of_weighted_sum: (
        Callable[..., tuple[tuple[jax.Array, Carry, Any], optax.Updates]] | None
    ) = None


def task_gradients(
    losses: Sequence[Callable[[optax.Params, Carry], tuple[jax.Array, Carry]]],
) -> TaskGradients:
    """Makes a `TaskGradients` of one loss function per task.

    Only the requested losses are evaluated. The members of a group are evaluated in
    order, and the carry passes from one to the next. If the tasks share most of their
    forward pass, a hand-written `TaskGradients` can make that pass once per group.

    Args:
      losses: functions `(params, carry) -> (scalar loss, carry)`.

    Returns:
      The `TaskGradients` of these losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> gradients = optim.task_gradients([
      ...     lambda w, carry: (w**2, carry),
      ...     lambda w, carry: (3 * w, carry),
      ...     lambda w, carry: (w, carry),
      ... ])
      >>> (loss, _), gradient = gradients.of_task(1, jnp.float32(2), None)
      >>> float(loss), float(gradient)
      (6.0, 3.0)
      >>> mask = jnp.array([True, True, False])
      >>> (values, _), gradient = gradients.of_group(mask, jnp.float32(2), None)
      >>> print(values, gradient)
      [4. 6. 0.] 7.0
    """
    # Differentiated inside the branches: the gradient of a `lax.switch` or `lax.cond`
    # keeps the intermediate results of all branches.
    branches = [jax.value_and_grad(loss, has_aux=True) for loss in losses]

    def of_task(index, params, carry):
        return lax.switch(index, branches, params, carry)

    def of_group(mask, params, carry):
        def visit(branch, carry, total):
            (loss, carry), gradient = branch(params, carry)
            total = jax.tree.map(jnp.add, total, gradient)
            return loss.astype(jnp.float32), carry, total

        def pass_by(carry, total):
            return jnp.zeros((), jnp.float32), carry, total

        total = jax.tree.map(jnp.zeros_like, params)
        values = []
        for is_member, branch in zip(mask, branches, strict=True):
            value, carry, total = lax.cond(
                is_member, functools.partial(visit, branch), pass_by, carry, total
            )
            values.append(value)
        return (jnp.stack(values), carry), total

    def every_loss(params, carry, active):
        values = []
        for index, loss in enumerate(losses):
            if active is None:
                value, carry = loss(params, carry)
            else:
                zero = jnp.zeros_like(jax.eval_shape(loss, params, carry)[0])
                value, carry = lax.cond(
                    active[index],
                    loss,
                    lambda params, carry, zero=zero: (zero, carry),
                    params,
                    carry,
                )
            values.append(value)
        return jnp.stack(values), carry

    def of_weighted_sum(weigh, params, carry, active):
        values, pull_back, after = jax.vjp(
            lambda params: every_loss(params, carry, active), params, has_aux=True
        )

        def shared_gradients(predicate):
            chosen, put_back = _paths.choose(params, predicate)
            _, pull_chosen_back = jax.vjp(
                lambda chosen: every_loss(put_back(chosen), carry, active)[0], chosen
            )
            return jax.vmap(pull_chosen_back)(jnp.eye(len(losses), dtype=values.dtype))[
                0
            ]

        weights, aux = weigh(values.astype(jnp.float32), shared_gradients)
        (gradient,) = pull_back(weights.astype(values.dtype))
        return (values.astype(jnp.float32), after, aux), gradient

    return TaskGradients(len(branches), of_task, of_group, of_weighted_sum)
