"""GradNorm: task weights that keep the tasks' gradient norms in balance."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim import _paths, _task_axis
from mtl_jax.optim._from_gram import WeightedAggregator, from_gram
from mtl_jax.optim._weighted import LossWeighting

# Before the weights are renormalised. A step of Adam has the size of the learning rate
# whatever the gradient's, so that a weight near zero would be stepped across it.
_SMALLEST_WEIGHT = 1e-3


class GradNormState(NamedTuple):
    """State of `gradnorm`.

    Attributes:
      weights: [N] float32, positive, of sum N; those of the next step.
      initial_losses: [N] float32, each task's first positive loss while it was active;
        0 before that.
      opt_state: N states of Adam, one for each weight, stacked.
    """

    weights: jax.Array
    initial_losses: jax.Array
    opt_state: optax.OptState

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `weights` of the tasks, for the next step."""
        return {"weights": self.weights}


def gradnorm(
    num_tasks: int,
    alpha: float | jax.Array = 1.5,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    shared: _paths.Predicate | None = None,
) -> WeightedAggregator:
    """Learns task weights w_k for which all tasks train at similar rates.

    This form needs the gradients of all tasks. `weighted` with `gradnorm_weighting`
    makes the same steps with one backward pass.

    Let L_k be the losses, G_k = w_k |g_k| the norms of the weighted gradients on the
    shared parameters, mean(G) their mean over the tasks, and r_k = (L_k / L_k(0)) /
    mean(L / L(0)) the relative inverse training rates. Adam takes one step in the
    weights to reduce

      sum_k | G_k - mean(G) r_k^alpha |

    with the target mean(G) r_k^alpha held constant. The weights are then raised to 1e-3
    at least, which the paper leaves open, and scaled to sum N. The update is
    sum_k w_k g_k with the weights from before this step.

    The weights, their own learning rate and the targets r_k^alpha, which pull slow
    tasks up, are those of the paper. LibMTL instead learns the logits of a softmax at
    the network's learning rate. TorchJD does not have the method.

    `update` takes the extra arguments `task_losses` (float [N], not weighted, not
    negative; required) and `active` (bool [N], None for all). A task that is not active
    does not enter the means, and keeps its weight, initial loss and Adam state. To make
    this possible each weight has its own Adam, which is the same as one Adam for the
    vector while all tasks are active. Only the weights of active tasks are scaled.

    Norms and losses must be 0 or between 1e-15 and 1e15, see `from_gram`.

    Args:
      num_tasks: N.
      alpha: strength of the pull towards equal training rates; 0 makes the norms equal.
      learning_rate: of the weights' Adam; a schedule counts the steps of each task.
      shared: selects the parameters whose gradients enter the norms, by their paths
        such as "encoder/block5_conv2/conv/kernel". The paper takes the last layer that
        the tasks share. None selects all. `optax.inject_hyperparams` needs
        `static_args=("num_tasks", "shared")`.

    Returns:
      A `WeightedAggregator`.

    Raises:
      ValueError: by `init` if `shared` selects no parameter; by `update` if
        `task_losses` are missing or the gradients are not of N tasks.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> tx = optax.chain(
      ...     optim.gradnorm(2, shared=lambda path: path.startswith("encoder/")),
      ...     optax.sgd(1.0),
      ... )
      >>> params = {"encoder": {"w": jnp.zeros(2)}, "head": jnp.zeros(2)}
      >>> gradients = {
      ...     "encoder": {"w": jnp.array([[3.0, 4.0], [0.0, 1.0]])},
      ...     "head": jnp.eye(2),
      ... }
      >>> updates, state = jax.jit(tx.update)(
      ...     gradients, tx.init(params), params, task_losses=jnp.array([2.0, 0.5])
      ... )
      >>> print(updates["encoder"]["w"])  # All weights are 1 in the first step.
      [-3. -5.]
      >>> bool(state[0].weights[0] < state[0].weights[1])  # It had the larger norm.
      True

    References:
      Chen et al., `GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
      Multitask Networks <https://arxiv.org/abs/1711.02257>`_, ICML 2018, equation 2 and
      algorithm 1.
    """
    init_fn, step = _balance(num_tasks, alpha, learning_rate)

    def weights_fn(gram, state, *, active, task_losses=None, **extra_args):
        del extra_args
        _task_axis.check_num_tasks(len(gram), num_tasks)
        if task_losses is None:
            raise ValueError(
                "gradnorm weighs the tasks by their losses: pass update(..., "
                "task_losses=...), one number per task"
            )
        return step(jnp.sqrt(jnp.diagonal(gram)), task_losses, state, active)

    return from_gram(weights_fn, init_fn, shared)


def gradnorm_weighting(
    num_tasks: int,
    alpha: float | jax.Array = 1.5,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    shared: _paths.Predicate | None = None,
) -> LossWeighting:
    """The weights of `gradnorm` for `weighted`, which makes one full backward pass.

    Beside that pass, only the gradients of the `shared` parameters are computed for
    each task. This is the cost that Chen et al. report.

    Args:
      num_tasks: N.
      alpha: see `gradnorm`.
      learning_rate: see `gradnorm`.
      shared: see `gradnorm`; the last layer that the tasks share makes it cheap.

    Returns:
      A `LossWeighting`; its state is a `GradNormState`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> losses = [
      ...     lambda w, carry: (jnp.sum((w["shared"] - w["head"]) ** 2), carry),
      ...     lambda w, carry: (9 * jnp.sum((w["shared"] + 1) ** 2), carry),
      ... ]
      >>> weighting = optim.gradnorm_weighting(2, shared=lambda path: path == "shared")
      >>> optimizer = optim.weighted(weighting, optax.adam(0.1))
      >>> w = {"head": jnp.ones(1), "shared": jnp.zeros(1)}
      >>> w, state, _, values = optimizer.update(
      ...     optim.task_gradients(losses), optimizer.init(w), w
      ... )
      >>> weights = state.weighting.weights  # The second task's gradient is the larger.
      >>> bool(weights[0] > weights[1])
      True

    References:
      Chen et al., `GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
      Multitask Networks <https://arxiv.org/abs/1711.02257>`_, ICML 2018, algorithm 1.
    """
    init, step = _balance(num_tasks, alpha, learning_rate)

    def init_fn(params):
        _paths.choose(params, shared)
        return init(params)

    def update_fn(losses, shared_gradients, state, active=None):
        active = jnp.broadcast_to(True if active is None else active, (num_tasks,))
        return step(_task_axis.norms(shared_gradients(shared)), losses, state, active)

    return LossWeighting(init_fn, update_fn)


def _balance(num_tasks, alpha, learning_rate):
    """Algorithm 1: `init` of the state, and a step of the weights.

    The step maps `(norms, losses, state, active)`, of arrays [N], to `(weights,
    state)`.
    """
    adam = optax.adam(learning_rate)

    def init_fn(params):
        del params
        return GradNormState(
            weights=jnp.ones(num_tasks),
            initial_losses=jnp.zeros(num_tasks),
            opt_state=_task_axis.init_stacked(adam, jnp.ones(()), num_tasks),
        )

    def step(norms, losses, state, active):
        losses = jnp.asarray(losses, jnp.float32)
        chex.assert_shape(losses, (num_tasks,))
        is_first = active & (state.initial_losses == 0) & (losses > 0)
        initial_losses = jnp.where(is_first, losses, state.initial_losses)
        remaining = _ratio(losses, initial_losses)
        rates = _ratio(remaining, _mean(remaining, active))
        targets = _mean(state.weights * norms, active) * rates**alpha
        gradient = jnp.sign(state.weights * norms - targets) * norms
        proposed, opt_state = _task_axis.step_active(
            adam, gradient, state.opt_state, state.weights, active
        )
        new_state = GradNormState(
            weights=_renormalised(proposed, state.weights, active),
            initial_losses=initial_losses,
            opt_state=opt_state,
        )
        return state.weights, new_state

    return init_fn, step


def _renormalised(proposed, weights, active):
    """The active tasks' proposed weights, positive, with the sum that they had."""
    proposed = jnp.where(active, jnp.maximum(proposed, _SMALLEST_WEIGHT), 0)
    # Exactly N where it can be, so that roundings do not add up over the steps.
    total = jnp.where(active.all(), len(weights), jnp.where(active, weights, 0).sum())
    return jnp.where(active, proposed * _ratio(total, proposed.sum()), weights)


def _mean(values, active):
    return jnp.where(active, values, 0).sum() / jnp.maximum(active.sum(), 1)


def _ratio(numerator, denominator):
    """The quotient, or 1 where the denominator is not positive."""
    is_positive = denominator > 0
    return jnp.where(
        is_positive, numerator / jnp.where(is_positive, denominator, 1), 1.0
    )
