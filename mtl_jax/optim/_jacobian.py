"""All gradients of a function of several losses."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

Backward = Literal["scan", "vmap"]


def jacobian(
    loss_fn: Callable[..., Any],
    params: optax.Params,
    *args: Any,
    backward: Backward = "scan",
    has_aux: bool = False,
) -> tuple[Any, optax.Updates]:
    """The losses of a function that returns several, and the gradient of each.

    This is `jax.value_and_grad` for a vector of N losses: one forward pass, and N
    backward passes. An aggregator takes the gradients as they are.

    Args:
      loss_fn: `(params, *args) -> losses`, a vector [N], such as `jnp.stack` makes of
        scalars. With `has_aux`, it returns `(losses, aux)`.
      params: a tree of arrays. Of an Equinox model or a Flax NNX module, it is the part
        with the parameters, and `loss_fn` puts the model together.
      *args: passed on to `loss_fn`.
      backward: "scan" makes the backward passes one after the other, in the memory of
        one. "vmap" makes them as one batched pass.
      has_aux: whether `loss_fn` returns anything beside the losses.

    Returns:
      `(losses, gradients)`, or with `has_aux` `((losses, aux), gradients)`. The
      gradients have the structure of `params`, and each leaf a leading task axis, [N,
      *shape of the parameter].

    Raises:
      ValueError: if the losses are not a vector.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> def loss_fn(w, x):
      ...     return jnp.stack([jnp.sum((w - x) ** 2), jnp.sum((w + x) ** 2)])
      >>> w, x = jnp.zeros(2), jnp.array([1.0, 2.0])
      >>> losses, gradients = optim.jacobian(loss_fn, w, x)
      >>> print(losses, gradients)
      [5. 5.] [[-2. -4.]
       [ 2.  4.]]
      >>> tx = optax.chain(optim.weighted_sum([3.0, 1.0]), optax.sgd(0.25))
      >>> updates, _ = tx.update(gradients, tx.init(w), w, task_losses=losses)
      >>> print(updates)
      [1. 2.]

    References:
      Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization
      <https://arxiv.org/abs/2406.16232>`_, 2024.
    """

    def losses_of(params):
        result = loss_fn(params, *args)
        losses, aux = result if has_aux else (result, None)
        if jnp.ndim(losses) != 1:
            raise ValueError(
                f"the losses have shape {jnp.shape(losses)}; they must be a vector, "
                "one number per task, [N]"
            )
        return losses, aux

    losses, pull_back, aux = jax.vjp(losses_of, params, has_aux=True)
    one_each = jnp.eye(len(losses), dtype=losses.dtype)
    if backward == "vmap":
        (gradients,) = jax.vmap(pull_back)(one_each)
    else:
        (gradients,) = lax.map(pull_back, one_each)
    return ((losses, aux) if has_aux else losses), gradients
