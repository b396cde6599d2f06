"""ExcessMTL: tasks with more excess risk weigh more."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim import _arguments, _task_axis
from mtl_jax.optim._from_gram import WeightedAggregator, from_weights

# Added to the sums of squares, as in the official code, and to the baselines, as in
# TorchJD.
_EPS = 1e-7


class ExcessMTLState(NamedTuple):
    """State of `excess_mtl`.

    Attributes:
      counts: int32 [N], steps in which each task was active.
      squares: tree with leaves [N, ...], at least float32, sums of squared gradients.
      baselines: [N], excess risks that later ones are divided by.
      logits: [N], of the weights, up to a common constant.
    """

    counts: jax.Array
    squares: optax.Updates
    baselines: jax.Array
    logits: jax.Array

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `weights` of the tasks, in the last step."""
        return {"weights": jax.nn.softmax(self.logits)}


def excess_mtl(
    num_tasks: int,
    robust_step_size: float | jax.Array = 0.01,
    n_warmup_steps: int = 1,
) -> WeightedAggregator:
    """Weighs the tasks by their excess risks: how much of their losses is to be gained.

    With S_k the sum of the squared gradients of task k so far, its excess risk is
    e_k = sum g_k^2 / sqrt(S_k + 1e-7), over all parameters. It is divided by its
    baseline. The weights are the softmax of robust_step_size times the sum of all e_k
    so far, and have the sum 1.

    The baseline is the mean over the warm-up, in whose steps the weights are equal.
    Without a warm-up it is the first e_k, which itself counts undivided.

    The defaults are those of the official code and of LibMTL, whose first step leaves
    the weights as they are. TorchJD's are a step size of 1 and no warm-up: there the
    first step already adds e_k, about the sum of |g_k|, to the logarithms, and of many
    parameters one task gets all of the weight. In the official code and LibMTL the
    weights start from 1 and have the sum N; they start from 1 / N in the paper, in
    TorchJD and here. The official sums are over the shared parameters only. The
    logarithms are kept, so that a weight that has become 0 in float32 can come back.

    `update` takes the extra argument `active`, bool [N] (None for all). A task that is
    not active is not read, and keeps its part of the state. The weights of the others
    have the sum 1.

    The norm of a gradient must be 0 or at most 1e15. Squares below 1e-7 count little.

    Args:
      num_tasks: N.
      robust_step_size: step size of the weights, not negative.
      n_warmup_steps: of each task. The paper takes three epochs.

    Returns:
      A `WeightedAggregator`. Its state has the size of N gradients.

    Raises:
      ValueError: if a parameter is negative; by `update` if the gradients are not of N
        tasks.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(optim.excess_mtl(2, 1.0, 0), optax.sgd(1.0))
      >>> params = jnp.zeros(2)
      >>> gradients = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # One row for each task.
      >>> updates, _ = tx.update(gradients, tx.init(params), params)
      >>> [round(float(x), 3) for x in updates]  # Weights are the softmax of [2, 1].
      [-1.462, -0.269]

    References:
      He et al., `Robust Multi-Task Learning with Excess Risks
      <https://arxiv.org/abs/2402.02009>`_, ICML 2024, equations 6, 7 and 9.
    """
    _arguments.require_range("robust_step_size", robust_step_size, 0)
    _arguments.require_range("n_warmup_steps", n_warmup_steps, 0)

    def init_fn(params):
        return ExcessMTLState(
            counts=jnp.zeros(num_tasks, jnp.int32),
            squares=_task_axis.zeros(params, num_tasks),
            baselines=jnp.zeros(num_tasks),
            logits=jnp.zeros(num_tasks),
        )

    def weights_fn(per_elt_updates, state, *, active, **extra_args):
        del extra_args
        _task_axis.check_num_tasks(_task_axis.num_tasks(per_elt_updates), num_tasks)
        gradients = jax.tree.map(
            _task_axis.widened, _task_axis.of_active(active, per_elt_updates)
        )
        squares = jax.tree.map(lambda s, g: s + g * g, state.squares, gradients)
        # As g^2 / sqrt(S), XLA would store the squares for both uses on a CPU.
        risks = sum(
            (g * (g / jnp.sqrt(s + _EPS))).sum(tuple(range(1, g.ndim)))
            for g, s in zip(
                jax.tree.leaves(gradients), jax.tree.leaves(squares), strict=True
            )
        )
        active = jnp.broadcast_to(True if active is None else active, (num_tasks,))
        is_warm, is_first = state.counts >= n_warmup_steps, state.counts == 0
        share = risks / max(n_warmup_steps, 1)
        is_open = active & (is_first if n_warmup_steps == 0 else ~is_warm)
        baselines = jnp.where(is_open, state.baselines + share, state.baselines)
        if n_warmup_steps == 0:
            divisors = jnp.where(is_first, 1, baselines + _EPS)
        else:
            divisors = baselines + _EPS
        steps = jnp.where(active & is_warm, robust_step_size * risks / divisors, 0)
        logits = state.logits + steps
        logits -= logits.max()
        new_state = ExcessMTLState(state.counts + active, squares, baselines, logits)
        return jax.nn.softmax(logits, where=active), new_state

    return from_weights(weights_fn, init_fn)
