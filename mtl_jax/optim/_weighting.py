"""Fixed weights of the tasks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _task_axis

Weights = Sequence[float] | jax.Array


def weighted_sum(weights: Weights | None = None) -> aggregating.Aggregator:
    """Sums the task gradients: sum_k c_k g_k, the gradient of the weighted losses.

    `update` takes the extra argument `active`, bool [N] (None for all). The gradient of
    a task that is not active is not read.

    Args:
      weights: c_k, [N]; 1 for every task by default. As an array they can be a
        hyperparameter, or a schedule, of `optax.inject_hyperparams`.

    Returns:
      An `optax.experimental.aggregating.Aggregator` without state.

    Raises:
      ValueError: by `update` if the gradients have no task axis, or there is not one
        weight per task.

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

    def update_fn(per_elt_updates, state, params=None, *, active=None, **extra_args):
        del extra_args
        values = _checked(weights, per_elt_updates, params)
        per_elt_updates = _task_axis.of_active(active, per_elt_updates)
        return _task_axis.combine(values, per_elt_updates), state

    return aggregating.Aggregator(optax.init_empty_state, update_fn)


def scale_by_task(weights: Weights) -> optax.GradientTransformationExtraArgs:
    """Multiplies each task's gradient by a fixed weight, and keeps the task axis.

    `update` takes the extra argument `active`, bool [N] (None for all). A task that is
    not active has a gradient of zeros afterwards.

    Args:
      weights: c_k, [N].

    Returns:
      A transformation of updates with a leading task axis, [N, ...]. An aggregator
      follows it. It has no state.

    Raises:
      ValueError: as `weighted_sum`.

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

    def update_fn(updates, state, params=None, *, active=None, **extra_args):
        del extra_args
        values = _checked(weights, updates, params)
        return _task_axis.scale(values, _task_axis.of_active(active, updates)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def _checked(weights, updates, params):
    """The weights [N], for updates with a leading task axis [N, ...]."""
    n = _task_axis.num_tasks(updates, params)
    weights = jnp.asarray(jnp.ones(n or 0) if weights is None else weights)
    if n is not None and weights.shape != (n,):
        raise ValueError(f"weights {weights.shape} must be one number per task, ({n},)")
    return weights
