"""SDMGrad: MGDA near a preferred direction, by two independent samples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _convex, _samples, _simplex
from mtl_jax.optim._from_gram import from_gram


class SDMGradState(NamedTuple):
    """State of `sdmgrad`.

    Attributes:
      weights: [N] float32, w below: not negative, of sum 1; equal at the start.
    """

    weights: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `weights` of the tasks, without the preferences."""
        return {"weights": self.weights}


def sdmgrad(
    num_tasks: int,
    lr: float | jax.Array = 10.0,
    momentum: float | jax.Array = 0.5,
    n_iter: int = 20,
    lambda_: float | jax.Array = 0.3,
    pref_vector: _arguments.Preferences = None,
) -> aggregating.Aggregator:
    """Takes a short convex combination of the gradients that leans to a preferred one.

    With the gradients J_1, J_2 [N, D] of two independent batches and the preferences p,
    some steps of projected gradient descent with momentum lower

      |J'(w + lambda p)|^2 / 2  by its slope  A (w + lambda p),  A = J_1 J_2' / s^2

    over the probability simplex, from the last w on. The product of two samples is not
    biased by the noise of one; s is the mean of the roots of the positive elements of
    its diagonal. The update is sum_k (w + lambda p)_k / (1 + lambda) g_k.

    `update` takes the extra argument `samples` (required), the pair of J_1 and J_2:
    trees like the gradients. The gradients themselves are those of a third batch.

    The defaults are those of TorchJD. LibMTL has lr = 5; the official code has lambda =
    0.6 in its class and 0.3 for NYUv2. LibMTL and TorchJD add 1e-8 to s^2, and the
    official code 1e-4 to the elements of the diagonal; here w stays if s is 0, and s^2
    is as it is, so that the gradients' scale does not matter.

    `update` also takes `active`, see `from_gram`. The weights of absent tasks stay, and
    those of the others keep their sum. The sum in the update is by weights of sum 1.

    Args:
      num_tasks: N.
      lr: learning rate of w, positive.
      momentum: of w, at least 0 and less than 1. Each step begins without velocity.
      n_iter: steps of w in one step of the parameters.
      lambda_: strength of the preferences, not negative; 0 makes it a stochastic MGDA.
      pref_vector: p, [N], not negative; 1/N for every task by default.

    Returns:
      An `optax.experimental.aggregating.Aggregator`.

    Raises:
      ValueError: if an argument is out of range; by `update` if `samples` are missing
        or the gradients are not of N tasks.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.sdmgrad(2, lr=0.5, lambda_=1.0), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(
      ...     gradients, tx.init(params), params, samples=(gradients, gradients)
      ... )
      >>> print(np.round(updates, 4))  # w is [0, 1], the mean [1, 0.5].
      [-0.5  -0.75]

    References:
      Xiao et al., `Direction-oriented Multi-objective Learning: Simple and Provable
      Stochastic Algorithms <https://arxiv.org/abs/2305.18409>`_, NeurIPS 2023, for s
      section 6.1.
    """
    _arguments.require(num_tasks >= 1, f"num_tasks is {num_tasks}, it must be positive")
    _arguments.require(lr > 0, f"lr is {lr}, it must be positive")
    _arguments.require(
        (momentum >= 0) & (momentum < 1),
        f"momentum is {momentum}, it must be at least 0 and less than 1",
    )
    _arguments.require(n_iter >= 1, f"n_iter is {n_iter}, it must be positive")
    _arguments.require(lambda_ >= 0, f"lambda_ is {lambda_}, it must not be negative")
    pref_vector = _arguments.checked_preferences(pref_vector)

    def init_fn(params):
        del params
        return SDMGradState(_simplex.start(num_tasks))

    def weights_fn(gram, state, *, active, samples=None, **extra_args):
        del extra_args
        products = _samples.inner_products("sdmgrad", samples, num_tasks, active)
        preferred = lambda_ * _arguments.preferences(pref_vector, active, gram.dtype)
        roots = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0))
        scale = roots.sum() / jnp.maximum(active.sum(), 1)
        products = jnp.where(
            scale > 0, products / jnp.where(scale > 0, scale, 1) ** 2, 0
        )

        rate, decay = (jnp.asarray(x, gram.dtype) for x in (lr, momentum))

        def step(_, carry):
            own, velocity = carry
            slope = _convex.product(products, own + preferred)
            velocity = decay * velocity + slope
            return _simplex.project(own - rate * velocity, active), velocity

        own = _simplex.of_active(state.weights, active).astype(gram.dtype)
        own, _ = lax.fori_loop(0, n_iter, step, (own, jnp.zeros_like(own)))
        state = SDMGradState(_simplex.merge(own, state.weights, active))
        return (own + preferred) / (1 + lambda_), state

    return from_gram(weights_fn, init_fn)
