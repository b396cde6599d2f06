"""Uncertainty weighting: each task's loss is divided by a learned variance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim._scalarization import learned_scalarization
from mtl_jax.optim._weighted import LossWeighting


class UncertaintyWeightingState(NamedTuple):
    """State of `uncertainty_weighting`.

    Attributes:
      log_variances: [N] float32, s_k = log sigma_k^2.
      opt_state: N states of the optax transformation, stacked.
    """

    log_variances: jax.Array
    opt_state: optax.OptState

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `weights` of the tasks, for the next step."""
        return {"weights": jnp.exp(-self.log_variances) / 2}


def uncertainty_weighting(
    num_tasks: int, tx: optax.GradientTransformation
) -> LossWeighting:
    """Learns a homoscedastic uncertainty for each task.

    The parameters of the network and the log variances s_k = log sigma_k^2 together
    reduce

      sum_k (exp(-s_k) L_k + s_k) / 2

    so the weights are exp(-s_k) / 2. All s_k start at 0. The optimum for a constant
    loss is s_k = log L_k, where every weighted loss is 1/2. A loss that is not positive
    has none, and its weight grows without bound.

    The paper's classification loss has the weight exp(-s_k), without the half. Here, as
    in TorchJD and LibMTL, all tasks have the same form. LibMTL starts at s_k = -1/2.

    A task that is not active keeps its log variance and its state of `tx`.

    Args:
      num_tasks: N.
      tx: trains the log variances. Each has its own state, so `tx` sees scalars.
        TorchJD's example trains them with the network's optimizer.

    Returns:
      A `LossWeighting`; its state is an `UncertaintyWeightingState`.

    Raises:
      ValueError: by `update` if the losses are not [N].

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> losses = [
      ...     lambda w, carry: (jnp.sum((w - 1) ** 2), carry),
      ...     lambda w, carry: (jnp.sum((w + 3) ** 2), carry),
      ... ]
      >>> weighting = optim.uncertainty_weighting(2, optax.sgd(0.1))
      >>> optimizer = optim.weighted(weighting, optax.sgd(0.25))
      >>> w = jnp.zeros(1)
      >>> w, state, _, values = optimizer.update(
      ...     optim.task_gradients(losses), optimizer.init(w), w
      ... )
      >>> print(w, values)  # All weights are 1/2 in the first step.
      [-0.5] [1. 9.]
      >>> print(state.weighting.log_variances)  # 0.1 (L - 1) / 2
      [0.  0.4]

    References:
      Kendall et al., `Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
      Geometry and Semantics <https://arxiv.org/abs/1705.07115>`_, CVPR 2018, equation
      7, with the log variances of section 3.2.
    """
    return learned_scalarization(
        num_tasks,
        tx,
        lambda s, losses: (jnp.exp(-s) * losses + s) / 2,
        UncertaintyWeightingState,
    )
