"""MoDo: weights that move towards those of MGDA, by two independent samples."""

from typing import NamedTuple

import jax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _convex, _samples, _simplex
from mtl_jax.optim._from_gram import from_gram


class MoDoState(NamedTuple):
    """State of `modo`.

    Attributes:
      weights: [N] float32, not negative, of sum 1; equal at the start.
    """

    weights: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `weights` of the tasks."""
        return {"weights": self.weights}


def modo(
    num_tasks: int,
    gamma: float | jax.Array = 0.1,
    rho: float | jax.Array = 0.1,
) -> aggregating.Aggregator:
    """Moves task weights down the slope of the update's length, and sums by them.

    With the gradients J_1, J_2 [N, D] of two independent batches, the weights go to

      w <- P(w - gamma (J_1 J_2' w + rho w))

    where P is the projection onto the probability simplex. The product of two samples
    is not biased by the noise of one. The update is sum_k w_k g_k with the new weights.

    `update` takes the extra argument `samples` (required), the pair of J_1 and J_2:
    trees like the gradients. The gradients themselves are those of a third batch, as in
    LibMTL. The paper's form with two batches takes the mean of J_1 and J_2 for them,
    and the official code the sum. The products are not scaled, so gamma goes with the
    square of the gradients' length. TorchJD and the official code have the defaults
    here; LibMTL has gamma = 0.001.

    `update` also takes `active`, see `from_gram`. The weights of absent tasks stay, and
    those of the others keep their sum. The sum in the update is by weights of sum 1.

    Args:
      num_tasks: N.
      gamma: learning rate of the weights, positive.
      rho: pull of the weights towards equality, not negative.

    Returns:
      An `optax.experimental.aggregating.Aggregator`.

    Raises:
      ValueError: if a number is out of range; by `update` if `samples` are missing or
        the gradients are not of N tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.modo(2, rho=0.0), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # One row for each task.
      >>> updates, state = tx.update(
      ...     gradients, tx.init(params), params, samples=(gradients, gradients)
      ... )
      >>> print(state[0].weights, updates)
      [0.425 0.575] [-0.85  -0.575]

    References:
      Chen et al., `Three-Way Trade-Off in Multi-Objective Learning: Optimization,
      Generalization and Conflict-Avoidance <https://arxiv.org/abs/2305.20057>`_,
      NeurIPS 2023 and JMLR 2024, algorithm 2 and equation 2.9 of the latter.
    """
    _arguments.require(num_tasks >= 1, f"num_tasks is {num_tasks}, it must be positive")
    _arguments.require(gamma > 0, f"gamma is {gamma}, it must be positive")
    _arguments.require(rho >= 0, f"rho is {rho}, it must not be negative")

    def init_fn(params):
        del params
        return MoDoState(_simplex.start(num_tasks))

    def weights_fn(gram, state, *, active, samples=None, **extra_args):
        del gram, extra_args
        products = _samples.inner_products("modo", samples, num_tasks, active)
        own = _simplex.of_active(state.weights, active)
        slope = _convex.product(products, own) + rho * own
        own = _simplex.project(own - gamma * slope, active)
        return own, MoDoState(_simplex.merge(own, state.weights, active))

    return from_gram(weights_fn, init_fn)
