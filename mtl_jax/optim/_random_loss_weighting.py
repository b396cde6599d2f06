"""Random loss weighting: new weights at every step."""

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim._scalarization import checked
from mtl_jax.optim._weighted import LossWeighting


def random_loss_weighting(key: jax.Array) -> LossWeighting:
    """Draws new weights at every step: the softmax of normal numbers, of sum 1.

    The sum is over the active tasks. This is the distribution of the paper, of TorchJD
    and the default of LibMTL, which has others.

    Args:
      key: for the draws. It is not part of the state, which is the number of steps.

    Returns:
      A `LossWeighting`; its state is an int32.

    Raises:
      ValueError: by `update` if the losses are not a vector.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> weighting = optim.random_loss_weighting(jax.random.key(0))
      >>> state = weighting.init(None)
      >>> weights, state = weighting.update(jnp.array([1.0, 4.0]), None, state)
      >>> print(f"{weights.sum():.3f}", state)
      1.000 1

    References:
      Lin et al., `Reasonable Effectiveness of Random Weighting: A Litmus Test for
      Multi-Task Learning <https://arxiv.org/abs/2111.10603>`_, TMLR 2022, algorithm 1.
    """

    def init_fn(params):
        del params
        return jnp.zeros((), jnp.int32)

    def update_fn(losses, shared_gradients, state, active=None):
        del shared_gradients
        losses, active = checked(losses, active)
        key_now = jax.random.fold_in(key, state)
        draws = jax.random.normal(key_now, losses.shape, losses.dtype)
        return jax.nn.softmax(draws, where=active), optax.safe_increment(state)

    return LossWeighting(init_fn, update_fn)
