"""GradVac: gradients are turned towards those that they were more similar to before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim import _arguments, _task_axis
from mtl_jax.optim._from_gram import WeightedAggregator, from_gram
from mtl_jax.optim._pcgrad import random_orders


class GradVacState(NamedTuple):
    """State of `gradvac`.

    Attributes:
      count: int32, steps made; with the key it gives the next step's random orders.
      targets: [N, N], moving averages of the cosines of task i's gradient (row) with
        task j's.
    """

    count: jax.typing.ArrayLike
    targets: jax.Array


def gradvac(
    num_tasks: int, key: jax.Array, beta: float | jax.Array = 0.5
) -> WeightedAggregator:
    """Turns each gradient until its cosines with the others are as on average before.

    For every task i, the other tasks j are visited in a random order, which is drawn
    anew for each task and step. Let c be the cosine of g_j with the gradient of task i
    as the visits so far have left it, and t the moving average of c. If c < t, so much
    of g_j is added to the gradient of task i that its cosine with g_j is t. Then t
    becomes (1 - beta) t + beta c. The results are summed. Since t starts from 0, the
    first step is one of `pcgrad`.

    A gradient of zero, or one that the visits have cancelled, has no cosine: it is not
    visited, and its averages stay. A target of 1 asks for infinitely much of g_j, so
    that targets above 1 - eps are taken for 1 - eps.

    The average is updated at every visit, as in TorchJD. LibMTL updates it only where
    the gradient is turned. Both add 1e-8 to the product of the norms, so that gradients
    much shorter than 1e-4 have no cosines; here nothing is added. The default of both
    for beta is 0.5. All parameters form one group, the paper's `whole_model`; for
    groups see `optax.multi_transform`.

    The range of norms is that of `from_gram`, and so is the extra argument `active`.

    Args:
      num_tasks: N.
      key: for the random orders, see `pcgrad`. `optax.inject_hyperparams` needs
        `static_args=("num_tasks", "key")`.
      beta: share of the new cosine in the average, from 0 to 1.

    Returns:
      A `WeightedAggregator`.

    Raises:
      ValueError: if `beta` is out of range; by `update` if the gradients are not of N
        tasks.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optim.gradvac(2, jax.random.key(0), beta=1.0)
      >>> params = jnp.zeros(2)
      >>> parallel = jnp.array([[1.0, 1.0], [0.0, 2.0]])  # One row for each task.
      >>> updates, state = tx.update(parallel, tx.init(params), params)
      >>> print(updates)  # Their sum. Its cosines are the targets from now on.
      [1. 3.]
      >>> updates, state = tx.update(jnp.eye(2), state, params)
      >>> print(updates)  # Each row is turned by 45 degrees: [1, 1] and [1, 1].
      [2. 2.]

    References:
      Wang et al., `Gradient Vaccine: Investigating and Improving Multi-task
      Optimization in Massively Multilingual Models
      <https://arxiv.org/abs/2010.05874>`_, ICLR 2021, algorithm 1.
    """
    _arguments.require_range("beta", beta, 0, 1)

    def init_fn(params):
        del params
        return GradVacState(jnp.zeros((), jnp.int32), jnp.zeros((num_tasks, num_tasks)))

    def weights_fn(gram, state, **extra_args):
        del extra_args
        _task_axis.check_num_tasks(len(gram), num_tasks)
        orders = random_orders(key, state.count, num_tasks)
        coefficients, targets = _turn(gram, orders, state.targets, beta)
        state = GradVacState(optax.safe_increment(state.count), targets)
        return coefficients.sum(0), state

    return from_gram(weights_fn, init_fn)


def _turn(gram, orders, targets, beta):
    """Coefficients [N, N] of the turned gradients (rows), and the new targets."""
    tasks, norms = jnp.arange(len(gram)), jnp.sqrt(jnp.diagonal(gram))

    def visit(carry, others):
        coefficients, targets = carry
        # Of each task's gradient, as it is now, with all and with the one it visits.
        inner = jnp.einsum("ik,kj->ij", coefficients, gram, precision="highest")
        square = (inner * coefficients).sum(1)
        parts = (jnp.abs(coefficients) * norms).sum(1)
        is_left = square > _task_axis.rounding(gram) * parts**2
        own, other = jnp.sqrt(jnp.where(is_left, square, 0)), norms[others]
        is_pair = is_left & (other > 0) & (others != tasks)
        cosine = inner[tasks, others] / jnp.where(is_pair, own * other, 1)
        cosine = jnp.clip(cosine, -1, 1)
        target = targets[tasks, others]
        reachable = jnp.minimum(target, 1 - jnp.finfo(gram.dtype).eps)
        sine, target_sine = (jnp.sqrt(1 - c**2) for c in (cosine, reachable))
        # What of g_j makes the cosine the target.
        added = own * (reachable * sine - cosine * target_sine)
        added /= jnp.where(is_pair, other, 1) * target_sine
        added = jnp.where(is_pair & (cosine < target), added, 0)
        average = jnp.where(is_pair, target + beta * (cosine - target), target)
        coefficients = coefficients.at[tasks, others].add(added)
        return (coefficients, targets.at[tasks, others].set(average)), None

    # As wide as the targets, which may be wider than the gradients.
    eye = jnp.eye(len(gram), dtype=jnp.promote_types(gram.dtype, targets.dtype))
    return lax.scan(visit, (eye, targets), orders.T)[0]
