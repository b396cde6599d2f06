"""Loss weights that are the derivatives of one scalar of the losses."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.optim import _arguments, _task_axis
from mtl_jax.optim._weighted import LossWeighting

# One number for each task.
Vector = Sequence[float] | np.ndarray | jax.Array


def scalarization(
    scalarize: Callable[[jax.Array, jax.Array], jax.Array],
) -> LossWeighting:
    """Makes a `LossWeighting` of a differentiable scalar function of the losses.

    The weights are the derivatives w_k = dS/dL_k of the scalar S. So the gradient of
    sum_k w_k L_k, with the weights held constant, is the gradient of S. All
    scalarizations of this package without parameters of their own have this form, among
    them `geometric_mean`, `stch`, `cosmos` and `pbi`.

    The loss of a task that is not active is not read: `scalarize` is given a 1 in its
    place, and its weight is 0 whatever the derivative.

    Args:
      scalarize: maps the losses [N] and `active`, bool [N], to a scalar. The losses are
        float32 (float64 for losses of float64). The scalar should not depend on the
        losses of tasks that are not active.

    Returns:
      A `LossWeighting` without state.

    Raises:
      ValueError: by `update` if the losses are not a vector.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim

      The root of the sum of the squares:

      >>> def norm(losses, active):
      ...     return jnp.sqrt(jnp.where(active, losses**2, 0).sum())
      >>> optimizer = optim.weighted(optim.scalarization(norm), optax.sgd(1.0))
      >>> losses = [lambda w, carry: (3 * w, carry), lambda w, carry: (4 * w, carry)]
      >>> w, _, _, values = optimizer.update(
      ...     optim.task_gradients(losses), optimizer.init(1.0), jnp.float32(1)
      ... )
      >>> print(values, w)  # The weights are 3/5 and 4/5.
      [3. 4.] -4.0
    """

    def update_fn(losses, shared_gradients, state, active=None):
        del shared_gradients
        losses, active = checked(losses, active)
        return jnp.where(active, jax.grad(scalarize)(losses, active), 0), state

    return LossWeighting(optax.init_empty_state, update_fn)


def learned_scalarization(
    num_tasks: int,
    tx: optax.GradientTransformation,
    scalarize: Callable[[jax.Array, jax.Array], jax.Array],
    make_state: Callable[[jax.Array, optax.OptState], Any],
) -> LossWeighting:
    """A scalarization with one parameter for each task, which `tx` trains.

    Every parameter starts at 0 and has its own state of `tx`. A task that is not active
    keeps both.

    Args:
      num_tasks: N.
      tx: steps along the gradient of the scalar with respect to the parameters.
      scalarize: maps the parameters and the losses of all tasks to the tasks' terms
        [N] of the scalar. No term depends on another task.
      make_state: makes the state, a pair, of the parameters [N] and the states of `tx`.
    """

    def init_fn(params):
        del params
        own = jnp.zeros(num_tasks)
        return make_state(own, _task_axis.init_stacked(tx, own[0], num_tasks))

    def update_fn(losses, shared_gradients, state, active=None):
        del shared_gradients
        losses, active = checked(losses, active, num_tasks)
        parameters, opt_state = state
        slopes, weights = jax.grad(lambda *x: scalarize(*x).sum(), (0, 1))(
            parameters, losses
        )
        stepped, opt_state = _task_axis.step_active(
            tx, slopes, opt_state, parameters, active
        )
        return jnp.where(active, weights, 0), make_state(stepped, opt_state)

    return LossWeighting(init_fn, update_fn)


def checked(
    losses: Any, active: Any, num_tasks: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The losses [N] with a 1 for tasks that are not active, and `active` as an array.

    Args:
      losses: [N].
      active: bool [N], or None for all tasks.
      num_tasks: N, if the weighting knows it.

    Raises:
      ValueError: if the losses are not [N].
    """
    losses = jnp.asarray(losses)
    if losses.ndim != 1 or num_tasks not in (None, len(losses)):
        expected = "[N]" if num_tasks is None else f"({num_tasks},)"
        raise ValueError(
            f"the losses have shape {losses.shape}; they must be a vector, one number "
            f"per task, {expected}"
        )
    active = jnp.broadcast_to(True if active is None else active, losses.shape)
    dtype = jnp.promote_types(losses.dtype, jnp.float32)
    return jnp.where(active, losses.astype(dtype), 1), active


def vector(name: str, values: Vector | None, losses: jax.Array) -> jax.Array:
    """Values for each task, zeros by default; a ValueError if they are not [N]."""
    if values is None:
        return jnp.zeros_like(losses)
    return _arguments.one_per_task(name, values, len(losses)).astype(losses.dtype)
