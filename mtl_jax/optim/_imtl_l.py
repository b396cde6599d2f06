"""IMTL-L: scales of the losses are learned so that all scaled losses become equal."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim._scalarization import learned_scalarization
from mtl_jax.optim._weighted import LossWeighting


class IMTLLState(NamedTuple):
    """State of `imtl_l`.

    Attributes:
      log_scales: [N] float32, s_k.
      opt_state: N states of the optax transformation, stacked.
    """

    log_scales: jax.Array
    opt_state: optax.OptState

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `weights` of the tasks, for the next step."""
        return {"weights": jnp.exp(self.log_scales)}


def imtl_l(num_tasks: int, tx: optax.GradientTransformation) -> LossWeighting:
    """Learns a scale for each task's loss; impartial multi-task learning, loss balance.

    The parameters of the network and the scales s_k together reduce

      sum_k (exp(s_k) L_k - s_k)

    so the weights are exp(s_k). All s_k start at 0. The optimum for a constant loss is
    s_k = -log L_k, where every scaled loss is 1. A loss that is not positive has none,
    and its weight grows without bound. This is twice the scalar of
    `uncertainty_weighting`, with -s_k in the place of s_k.

    The paper combines it with the gradient balance of IMTL-G; this is the loss balance
    alone.

    A task that is not active keeps its scale and its state of `tx`.

    Args:
      num_tasks: N.
      tx: trains the scales. Each has its own state, so `tx` sees scalars.
        TorchJD's example trains them with the network's optimizer.

    Returns:
      A `LossWeighting`; its state is an `IMTLLState`.

    Raises:
      ValueError: by `update` if the losses are not [N].

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> losses = [
      ...     lambda w, carry: (jnp.sum((w - 1) ** 2), carry),
      ...     lambda w, carry: (jnp.sum((w + 3) ** 2), carry),
      ... ]
      >>> weighting = optim.imtl_l(2, optax.sgd(0.1))
      >>> optimizer = optim.weighted(weighting, optax.sgd(0.25))
      >>> w = jnp.zeros(1)
      >>> w, state, _, values = optimizer.update(
      ...     optim.task_gradients(losses), optimizer.init(w), w
      ... )
      >>> print(w, values)  # All weights are 1 in the first step.
      [-1.] [1. 9.]
      >>> print(state.weighting.log_scales)  # 0.1 (1 - L)
      [ 0.  -0.8]

    References:
      Liu et al., `Towards Impartial Multi-task Learning
      <https://openreview.net/forum?id=IMPnRXEWpvr>`_, ICLR 2021, equation 6.
    """
    return learned_scalarization(
        num_tasks, tx, lambda s, losses: jnp.exp(s) * losses - s, IMTLLState
    )
