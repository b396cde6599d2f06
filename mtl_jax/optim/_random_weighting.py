"""Random weighting: task weights drawn anew at every step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim import _task_axis
from mtl_jax.optim._from_gram import WeightedAggregator, from_weights


class RandomWeightingState(NamedTuple):
    """State of `random_weighting`.

    Attributes:
      count: int32, steps made; with the key it gives the next step's weights.
    """

    count: jax.typing.ArrayLike


def random_weighting(key: jax.Array) -> WeightedAggregator:
    """Draws the task weights at every step, positive and of sum 1.

    The weights are the softmax of standard normal numbers, over the active tasks.
    `update` takes the extra argument `active`, bool [N] (None for all).

    Weights of losses are drawn in the same way; then one backward pass is enough. This
    form, the paper's random gradient weighting (RGW), is for gradients that exist in
    any case. The sum of the weights is 1 as in the paper, LibMTL and TorchJD.

    Args:
      key: for the weights, see `pcgrad`.

    Returns:
      A `WeightedAggregator`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> tx = optim.random_weighting(jax.random.key(0))
      >>> params = jnp.zeros(2)
      >>> updates, state = tx.update(jnp.eye(2), tx.init(params), params)
      >>> print(updates.sum().round(3))
      1.0

    References:
      Lin et al., `Reasonable Effectiveness of Random Weighting: A Litmus Test for
      Multi-Task Learning <https://arxiv.org/abs/2111.10603>`_, TMLR 2022, algorithm 2.
    """

    def init_fn(params):
        del params
        return RandomWeightingState(jnp.zeros((), jnp.int32))

    def weights_fn(per_elt_updates, state, *, active, **extra_args):
        del extra_args
        numbers = _normal(key, state.count, _task_axis.num_tasks(per_elt_updates))
        weights = jax.nn.softmax(numbers, where=active)
        return weights, RandomWeightingState(optax.safe_increment(state.count))

    return from_weights(weights_fn, init_fn)


def _normal(key, count, n):
    return jax.random.normal(jax.random.fold_in(key, count), (n,))
