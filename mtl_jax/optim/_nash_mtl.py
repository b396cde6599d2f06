"""Nash-MTL: the gradients bargain for the update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax.experimental import aggregating

from mtl_jax.optim import _arguments, _convex, _task_axis
from mtl_jax.optim._from_gram import from_gram


class NashMTLState(NamedTuple):
    """State of `nash_mtl`.

    Attributes:
      count: int32, steps made.
      weights: [N], those of the last bargain, before `max_norm`; 1 at the start.
    """

    count: jax.typing.ArrayLike
    weights: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `weights` of the tasks."""
        return {"weights": self.weights}


def nash_mtl(
    num_tasks: int,
    max_norm: float | jax.Array = 1.0,
    update_weights_every: int = 1,
) -> aggregating.Aggregator:
    """Takes the update whose gains, multiplied over all tasks, are largest.

    Of the vectors d of one length, this is the one with the largest product of
    <g_k, d>. Its weights solve the bargaining equation

      (G w)_k = 1 / w_k

    Each task has the same part of the update's square, w_k <g_k, d> = 1. So the update
    has the length sqrt(N) whatever the gradients' lengths are, and `max_norm` shortens
    it to 1 by default: what counts of the gradients is their directions.

    The official code, LibMTL and TorchJD come to the same equation by up to 20 convex
    programs (`optim_niter`), which approximate it around the last step's weights. Where
    the programs fail, they go on with the weights that they have. Here Newton's method
    solves it to the rounding, and nothing of an earlier step enters.

    If zero is in the convex hull of the gradients there is no bargain: the weights grow
    and the update shrinks until roundings stop them, in float32 at weights of 1e3 for
    unit gradients. A gradient of zero takes no part. The range of norms is that of
    `from_gram`, and so is the extra argument `active`. A task that is absent keeps its
    weight in the state.

    Args:
      num_tasks: N.
      max_norm: the update is shortened to this norm; 0 for no limit. The official code
        and LibMTL clip what the shared parameters get, here and in TorchJD it is what
        this aggregator gets.
      update_weights_every: steps for which the weights of one bargain serve.

    Returns:
      An `optax.experimental.aggregating.Aggregator`.

    Raises:
      ValueError: if a number is out of range; by `update` if the gradients are not of N
        tasks.

    Example:
      >>> import jax.numpy as jnp, numpy as np, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.nash_mtl(2, max_norm=0.0), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[3.0, 0.0], [0.0, 2.0]])  # One row for each task.
      >>> updates, state = tx.update(gradients, tx.init(params), params)
      >>> print(np.round(updates, 4))
      [-1. -1.]

    References:
      Navon et al., `Multi-Task Learning as a Bargaining Game
      <https://arxiv.org/abs/2202.01017>`_, ICML 2022, claim 3.1, algorithm 1.
    """
    _arguments.require(num_tasks >= 1, f"num_tasks is {num_tasks}, it must be positive")
    _arguments.require(
        max_norm >= 0, f"max_norm is {max_norm}, it must not be negative"
    )
    _arguments.require(
        update_weights_every >= 1,
        f"update_weights_every is {update_weights_every}, it must be positive",
    )

    def init_fn(params):
        del params
        return NashMTLState(jnp.zeros((), jnp.int32), jnp.ones(num_tasks))

    def weights_fn(gram, state, *, active, **extra_args):
        del extra_args
        _task_axis.check_num_tasks(len(gram), num_tasks)
        cosines, norms, present = _convex.unit_diagonal(gram, active)
        before = state.weights.astype(gram.dtype)

        def bargain():
            weights = _convex.fair_point(cosines, 1.0) / norms
            return jnp.where(active, jnp.where(present, weights, 0), before)

        weights = lax.cond(
            state.count % update_weights_every == 0, bargain, lambda: before
        )
        lengths = jnp.where(present, weights * norms, 0)
        square = _convex.product(lengths, _convex.product(cosines, lengths))
        norm = jnp.sqrt(jnp.maximum(square, 0))
        is_long = (max_norm > 0) & (norm > max_norm)
        factor = jnp.where(is_long, max_norm / jnp.where(is_long, norm, 1), 1)
        state = NashMTLState(
            optax.safe_increment(state.count), weights.astype(state.weights.dtype)
        )
        return weights * factor, state

    return from_gram(weights_fn, init_fn)
