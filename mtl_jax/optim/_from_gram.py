"""Aggregators that look at the inner products of the task gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _paths, _task_axis


class WeightedAggregator(aggregating.Aggregator):
    """An aggregator whose update is a weighted sum of the task gradients.

    Attributes:
      init: maps params to the state.
      update: maps gradients with a leading task axis to updates without it.
      weights: maps the arguments of `update` to `(weights, state)`: the weights [N] of
        the sum instead of the sum. Wrappers such as `cr_mogm` change them.
    """

    weights: Callable[..., tuple[jax.Array, optax.OptState]]


def from_gram(
    weights: Callable[..., Any],
    init: Callable[[optax.Params], optax.OptState] | None = None,
    shared: _paths.Predicate | None = None,
) -> WeightedAggregator:
    """Makes an aggregator of a function from the Gram matrix to task weights.

    The Gram matrix G holds the inner products of the task gradients, G[j, k] =
    <g_j, g_k>. The update is sum_k w_k g_k with the weights w = weights(G). Many
    methods have this form, among them MGDA, CAGrad, IMTL-G, Aligned-MTL and UPGrad. The
    gradients are read twice, once for G and once for the sum.

    Give `init` as well if the weights need a state, random numbers or the losses. A
    random method counts its steps in the state, and folds the count into its key with
    `jax.random.fold_in`.

    The aggregator's `update` takes the extra argument `active` (bool [N], None for
    all). The gradient of a task that is not active is not read: it counts as zero, in G
    as well, and its weight is 0 whatever `weights` returns. A task whose gradient is
    zero has zeros in G as well. So `jnp.diagonal(gram) > 0` is False for both.

    The norm of a gradient must be 0 or between 1e-15 and 1e15. G is float32 and is not
    rescaled: a smaller norm can count as 0, and a larger one can make the update
    infinite or NaN.

    Args:
      weights: maps G, float32 [N, N] (float64 for gradients of float64), to weights
        [N]. With `init`, it maps `(gram, state, *, active, **extra_args)` to `(weights,
        state)`. `active` is then always an array, and `extra_args` are the other extra
        arguments of `update`, such as `task_losses`.
      init: maps params to the state of `weights`.
      shared: selects the parameters whose gradients enter G, by their paths such as
        "encoder/block5_conv2/conv/kernel". None selects all. The sum is over all
        parameters in any case.

    Returns:
      A `WeightedAggregator`. Its state is that of `weights`.

    Raises:
      ValueError: by `init` if `shared` selects no parameter; by `update` if the
        gradients have no task axis or the weights are not [N].

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> gradients = jnp.array([[4.0, 0.0], [0.0, -2.0]])  # One row for each task.
      >>> params = jnp.zeros(2)

      The mean of the unit gradients:

      >>> def unit_mean(gram):
      ...     norms = jnp.sqrt(jnp.diagonal(gram))
      ...     return 1 / (len(gram) * jnp.maximum(norms, 1e-15))
      >>> tx = optax.chain(optim.from_gram(unit_mean), optax.sgd(1.0))
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> print(updates)
      [-0.5  0.5]

      The task with the largest loss, and a count of the steps:

      >>> def worst_first(gram, count, *, task_losses, **extra_args):
      ...     return jax.nn.one_hot(jnp.argmax(task_losses), len(gram)), count + 1
      >>> tx = optim.from_gram(worst_first, init=lambda params: jnp.int32(0))
      >>> losses = jnp.array([0.5, 0.9])
      >>> updates, count = tx.update(gradients, tx.init(params), task_losses=losses)
      >>> print(updates, count)
      [ 0. -2.] 1

    References:
      Quinton and Rey, `Jacobian Descent for Multi-Objective Optimization
      <https://arxiv.org/abs/2406.16232>`_, 2024, on descent by the Gram matrix.
    """

    def init_fn(params):
        _paths.choose(params, shared)
        return optax.EmptyState() if init is None else init(params)

    def weights_fn(per_elt_updates, state, *, active, **extra_args):
        gram = _task_axis.gram(_paths.choose(per_elt_updates, shared)[0])
        if active is not None:
            # Before the product, zeros in the gradients would be a copy of all of them;
            # after it, XLA fuses them into the weighted sum.
            gram = jnp.where(jnp.outer(active, active), gram, 0)
        if init is None:
            return weights(gram), state
        active = jnp.broadcast_to(True if active is None else active, len(gram))
        return weights(gram, state, active=active, **extra_args)

    return from_weights(weights_fn, init_fn)


def from_weights(
    weights: Callable[..., Any],
    init: optax.TransformInitFn = optax.init_empty_state,
) -> WeightedAggregator:
    """Makes an aggregator of a function from the task gradients to their weights.

    Args:
      weights: maps `(per_elt_updates, state, *, active, **extra_args)` to `(weights,
        state)`. `active` is None or bool [N]; what the weight of a task that is not
        active is does not matter, and its gradient may be anything.
      init: maps params to the state of `weights`.

    Returns:
      A `WeightedAggregator`.

    Raises:
      ValueError: by `update` if the gradients have no task axis or the weights are not
        [N].
    """

    def weights_fn(per_elt_updates, state, params=None, *, active=None, **extra_args):
        n = _task_axis.num_tasks(per_elt_updates, params)
        values, state = weights(per_elt_updates, state, active=active, **extra_args)
        if jnp.shape(values) != (n,):
            raise ValueError(f"the weights of {n} tasks have shape {jnp.shape(values)}")
        return (values if active is None else jnp.where(active, values, 0)), state

    def update_fn(per_elt_updates, state, params=None, *, active=None, **extra_args):
        if _task_axis.num_tasks(per_elt_updates) is None:
            return per_elt_updates, state
        values, state = weights_fn(
            per_elt_updates, state, params, active=active, **extra_args
        )
        per_elt_updates = _task_axis.of_active(active, per_elt_updates)
        return _task_axis.combine(values, per_elt_updates), state

    aggregator = WeightedAggregator(init, update_fn)
    aggregator.weights = weights_fn
    return aggregator
