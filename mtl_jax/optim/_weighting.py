"""Fixed weights of the tasks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim import _task_axis

Weights = Sequence[float] | jax.Array


def weighted_sum(
    weights: Weights | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds the tasks' gradients up: sum_k c_k g_k, the gradient of the summed losses.

    Args:
      weights: c_k, [N]; 1 for every task by default. As an array they can be a
        hyperparameter, or a schedule, of `optax.inject_hyperparams`.

    Returns:
      A transformation that takes updates with a leading task axis, [N, ...], to
      updates without it. It has no state.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.weighted_sum([1.0, 0.5]), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[1.0, 2.0], [4.0, 0.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(updates)
      [-3. -2.]

    References:
      Pascal et al., `Multi-task deep learning for glaucoma detection from color
      fundus images <https://doi.org/10.1038/s41598-022-16262-8>`_, Scientific Reports
      2022, equation 1.
    """

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        n = _task_axis.num_tasks(updates, params)
        if weights is None:
            return _task_axis.add_up(updates), state
        return _task_axis.combine(_checked(weights, n), updates), state

    return optax.GradientTransformationExtraArgs(_init_fn, update_fn)


def scale_by_task(weights: Weights) -> optax.GradientTransformationExtraArgs:
    """Multiplies every task's gradient by a fixed weight, and keeps the task axis.

    Args:
      weights: c_k, [N].

    Returns:
      A transformation of updates with a leading task axis, [N, ...], to be followed by
      one that consumes it. It has no state.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(
      ...     optim.scale_by_task([1.0, 0.5]), optim.pcgrad(jax.random.key(0))
      ... )
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[1.0, 2.0], [4.0, 0.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(updates)
      [3. 2.]
    """

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        n = _task_axis.num_tasks(updates, params)
        return _task_axis.scale(_checked(weights, n), updates), state

    return optax.GradientTransformationExtraArgs(_init_fn, update_fn)


def _init_fn(params):
    del params
    return optax.EmptyState()


def _checked(weights, n):
    weights = jnp.asarray(weights)
    if n is not None and weights.shape != (n,):
        raise ValueError(f"weights {weights.shape} must be one number per task, ({n},)")
    return weights
