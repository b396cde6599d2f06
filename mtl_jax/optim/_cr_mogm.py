"""CR-MOGM: the task weights of another method, averaged over the steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _task_axis
from mtl_jax.optim._from_gram import WeightedAggregator, from_weights


class CRMOGMState(NamedTuple):
    """State of `cr_mogm`.

    Attributes:
      weights: [N], moving averages of the weights.
      is_started: bool [N], whether there is an average yet.
      inner: of the aggregator.
    """

    weights: jax.Array
    is_started: jax.Array
    inner: optax.OptState

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `weights` of the tasks, in the last step."""
        return {"weights": self.weights}


def cr_mogm(
    aggregator: aggregating.Aggregator,
    num_tasks: int,
    alpha: float | jax.Array = 0.9,
    initial_weights: jax.typing.ArrayLike | None = None,
) -> WeightedAggregator:
    """Smooths the task weights of another aggregator by a moving average.

    The update is sum_k l_k g_k with l = alpha l' + (1 - alpha) w, where w are the
    aggregator's weights of this step, and l' is the l of the step before.

    A task that is not active keeps its average. Its first average is its weight in the
    first step in which it is active.

    Args:
      aggregator: a `WeightedAggregator`: what `from_gram` makes, such as `pcgrad`,
        `imtl_g` and `gradnorm`, or `excess_mtl`.
      num_tasks: N.
      alpha: share of the average before, from 0 to 1. The paper lets it rise to 1 as
        the learning rate falls; `optax.inject_hyperparams` with `static_args=
        ("aggregator", "num_tasks")` takes a schedule of it. 0.9 is TorchJD's.
      initial_weights: l before the first step, [N]. By default it is w of the first
        step, as in TorchJD.

    Returns:
      A `WeightedAggregator`.

    Raises:
      ValueError: if the aggregator has no weights, `alpha` is out of range or there is
        not one initial weight per task; by `update` if the gradients are not of N
        tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optim.cr_mogm(optim.imtl_g(), num_tasks=2, alpha=0.5)
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for gradients in (jnp.eye(2), jnp.diag(jnp.array([1.0, 3.0]))):
      ...     _, state = tx.update(gradients, state, params)
      ...     [round(float(w), 3) for w in state.weights]
      [0.5, 0.5]
      [0.625, 0.375]

      IMTL-G's own weights are [0.5, 0.5] and [0.75, 0.25].

    References:
      Zhou et al., `On the Convergence of Stochastic Multi-Objective Gradient
      Manipulation and Beyond <https://openreview.net/forum?id=ScwfQ7hdwyP>`_, NeurIPS
      2022.
    """
    weigh = getattr(aggregator, "weights", None)
    if weigh is None:
        raise ValueError(
            "cr_mogm smooths the weights of an aggregator that has them, such as "
            f"pcgrad or whatever from_gram makes, got {aggregator}"
        )
    _arguments.require_range("alpha", alpha, 0, 1)
    if initial_weights is not None:
        initial_weights = _arguments.one_per_task(
            "initial_weights", initial_weights, num_tasks
        )

    def init_fn(params):
        weights = jnp.zeros(num_tasks) if initial_weights is None else initial_weights
        is_started = jnp.full(num_tasks, initial_weights is not None)
        return CRMOGMState(
            jnp.asarray(weights, float), is_started, aggregator.init(params)
        )

    def weights_fn(per_elt_updates, state, *, active, **extra_args):
        found, inner = weigh(per_elt_updates, state.inner, active=active, **extra_args)
        _task_axis.check_num_tasks(len(found), num_tasks)
        before = jnp.where(state.is_started, state.weights, found)
        weights = alpha * before + (1 - alpha) * found
        active = jnp.broadcast_to(True if active is None else active, (num_tasks,))
        weights = jnp.where(active, weights, state.weights)
        return weights, CRMOGMState(weights, state.is_started | active, inner)

    return from_weights(weights_fn, init_fn)
