"""One backward pass, of a weighted sum of the losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim import _task_axis
from mtl_jax.optim._sequential import SequentialOptimizer, checked_active, step_or_skip


class LossWeighting(NamedTuple):
    """A pair of pure functions that weigh the tasks' losses.

    Attributes:
      init: maps params to the weighting's state.
      update: `(losses, shared_gradients, state, active=None) -> (weights, state)`.
        `losses` is float32 [N], not weighted. `shared_gradients(predicate)` computes
        the task gradients of the parameters whose paths the predicate selects, a list
        of leaves with a leading task axis. `active`, bool [N], says which tasks take
        part. `weights` is [N].
    """

    init: Callable[[optax.Params], Any]
    update: Callable[..., tuple[jax.Array, Any]]


class WeightedState(NamedTuple):
    """State of `weighted`.

    Attributes:
      weighting: of the `LossWeighting`.
      optimizer: of the optax transformation.
    """

    weighting: Any
    optimizer: optax.OptState


def weighted(
    weighting: LossWeighting, tx: optax.GradientTransformation
) -> SequentialOptimizer:
    """Steps along the gradient of sum_k w_k L_k, with weights of a `LossWeighting`.

    A step makes one backward pass, and computes the gradients that the weighting calls
    for. A task that is not active has weight and loss 0. If no task is active, nothing
    moves.

    Args:
      weighting: such as `gradnorm_weighting`.
      tx: any optax transformation.

    Returns:
      A `SequentialOptimizer` with a single step for all tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> losses = [
      ...     lambda w, carry: (jnp.sum((w["shared"] - 1) ** 2), carry),
      ...     lambda w, carry: (jnp.sum((w["shared"] + 3) ** 2), carry),
      ... ]
      >>> optimizer = optim.weighted(
      ...     optim.gradnorm_weighting(2, shared=lambda path: path == "shared"),
      ...     optax.sgd(0.25),
      ... )
      >>> w = {"shared": jnp.zeros(1)}
      >>> w, state, _, values = optimizer.update(
      ...     optim.task_gradients(losses), optimizer.init(w), w
      ... )
      >>> print(w["shared"], values)  # All weights are 1 in the first step.
      [-1.] [1. 9.]
    """

    def init_fn(params):
        return WeightedState(weighting.init(params), tx.init(params))

    def update_fn(task_gradients, state, params, carry=None, active=None):
        active = checked_active(task_gradients, active)

        def loss_and_gradient(params, carry):
            carry, weighting_state = carry

            def weigh(losses, shared_gradients):
                weights, state = weighting.update(
                    losses, shared_gradients, weighting_state, active
                )
                return _task_axis.of_active(active, weights), state

            (losses, carry, weighting_state), gradient = task_gradients.of_weighted_sum(
                weigh, params, carry, active
            )
            losses = _task_axis.of_active(active, losses)
            return (losses, (carry, weighting_state)), gradient

        params, (carry, weighting_state), optimizer_state, losses = step_or_skip(
            tx,
            loss_and_gradient,
            None if active is None else active.any(),
            params,
            (carry, state.weighting),
            state.optimizer,
            jnp.zeros(task_gradients.num_tasks, jnp.float32),
        )
        return params, WeightedState(weighting_state, optimizer_state), carry, losses

    return SequentialOptimizer(init_fn, update_fn)
