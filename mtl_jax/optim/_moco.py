"""MoCo: running means of the gradients, and weights towards those of their MGDA."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _convex, _simplex, _task_axis
from mtl_jax.optim._from_gram import from_gram


class MoCoState(NamedTuple):
    """State of `moco`.

    Attributes:
      count: int32, steps made.
      tracked: running means of the task gradients, with a leading task axis; zeros at
        the start. At least float32.
      weights: [N] float32, not negative, of sum 1; equal at the start.
    """

    count: jax.typing.ArrayLike
    tracked: optax.Updates
    weights: Any

    def metrics(self) -> dict[str, Any]:
        """What a training logs: `weights` of the tasks."""
        return {"weights": self.weights}


def moco(
    num_tasks: int,
    beta: optax.ScalarOrSchedule = 0.5,
    gamma: optax.ScalarOrSchedule = 0.1,
    rho: float | jax.Array = 0.0,
) -> aggregating.Aggregator:
    """Tracks the task gradients, and sums what it tracked by weights that it moves.

    With the gradients h_k of a batch and Y the matrix of the tracked gradients y_k,

      y_k <- y_k + beta (h_k - y_k)
      w <- P(w - gamma (Y Y' w + rho w))

    where P is the projection onto the probability simplex. The update is sum_k w_k y_k
    with the new values. The means take the noise of one batch out of the product Y Y',
    as the samples do for `modo` and `sdmgrad`. They cost N times the parameters'
    memory.

    This is the program of the authors' repository Trade-Off-MOL without its options of
    normalisation, at constant rates. LibMTL takes a softmax in the place of P, which
    pulls the weights to equality; it divides each gradient by its norm and multiplies
    it by its loss; its beta and gamma fall as t^(-1/2) over the steps t = 1, 2, and so
    on, for which schedules serve here. The defaults are its first step's; the authors'
    program has 0.1 for all three. The products are not scaled, so gamma goes with the
    square of the gradients' length. TorchJD 0.18 has no MoCo.

    `update` takes `active`, see `from_gram`. What was tracked of an absent task stays,
    as its weight does, and is no part of the update. The other weights keep their sum;
    the sum in the update is by weights of sum 1.

    Args:
      num_tasks: N.
      beta: rate of the tracking, above 0 and at most 1, or a schedule over the steps.
      gamma: learning rate of the weights, positive, or a schedule over the steps.
      rho: pull of the weights towards equality, not negative.

    Returns:
      An `optax.experimental.aggregating.Aggregator`.

    Raises:
      ValueError: if a number is out of range; by `update` if the gradients are not of N
        tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.moco(2), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[4.0, 0.0], [0.0, 2.0]])  # One row for each task.
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> print(state[0].weights, updates)
      [0.425 0.575] [-0.85  -0.575]

    References:
      Fernando et al., `Mitigating Gradient Bias in Multi-objective Learning: A Provably
      Convergent Approach <https://arxiv.org/abs/2210.12624>`_, ICLR 2023, algorithm 1.
    """
    _arguments.require(num_tasks >= 1, f"num_tasks is {num_tasks}, it must be positive")
    _arguments.require(
        callable(beta) or (beta > 0) & (beta <= 1),
        f"beta is {beta}, it must be above 0 and at most 1",
    )
    _arguments.require(
        callable(gamma) or gamma > 0, f"gamma is {gamma}, it must be positive"
    )
    _arguments.require(rho >= 0, f"rho is {rho}, it must not be negative")

    def weights_fn(gram, weights, *, active, rate, **extra_args):
        del extra_args
        own = _simplex.of_active(weights, active)
        slope = _convex.product(gram, own) + rho * own
        own = _simplex.project(own - rate * slope, active)
        return own, _simplex.merge(own, weights, active)

    summed = from_gram(weights_fn, lambda params: _simplex.start(num_tasks))

    def init_fn(params):
        tracked = jax.tree.map(
            lambda leaf: jnp.zeros(
                (num_tasks, *leaf.shape), jnp.promote_types(leaf.dtype, jnp.float32)
            ),
            params,
        )
        return MoCoState(jnp.zeros((), jnp.int32), tracked, summed.init(params))

    def update_fn(per_elt_updates, state, params=None, *, active=None, **extra_args):
        n = _task_axis.num_tasks(per_elt_updates, params)
        _task_axis.check_num_tasks(n, num_tasks)
        count = state.count
        share, rate = (r(count) if callable(r) else r for r in (beta, gamma))
        tracked = jax.tree.map(
            lambda y, h: (y + share * (h - y)).astype(y.dtype),
            state.tracked,
            per_elt_updates,
        )
        if active is not None:
            tracked = _task_axis.select(jnp.asarray(active), tracked, state.tracked)
        updates, weights = summed.update(
            tracked, state.weights, params, active=active, rate=rate, **extra_args
        )
        updates = jax.tree.map(lambda u, h: u.astype(h.dtype), updates, per_elt_updates)
        return updates, MoCoState(optax.safe_increment(count), tracked, weights)

    return aggregating.Aggregator(init_fn, update_fn)
