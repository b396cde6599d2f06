"""FAMO: the logarithms of all losses are to fall at the same rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim import _task_axis
from mtl_jax.optim._scalarization import Vector, checked, vector
from mtl_jax.optim._weighted import LossWeighting

_EPSILON = 1e-8


class FAMOState(NamedTuple):
    """State of `famo`.

    Attributes:
      logits: [N] float32, those of the tasks' shares.
      log_losses: [N] float32, above the bounds, of each task's last active step.
      is_seen: [N] bool, whether the task has been active.
      opt_state: N states of Adam, stacked.
    """

    logits: jax.Array
    log_losses: jax.Array
    is_seen: jax.Array
    opt_state: optax.OptState

    def metrics(self) -> dict[str, jax.Array]:
        """What a training logs: `shares` of the tasks in the last step, of sum 1."""
        return {"shares": jax.nn.softmax(self.logits)}


def famo(
    num_tasks: int,
    min_losses: Vector | None = None,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    weight_decay: float | jax.Array = 1e-3,
) -> LossWeighting:
    """Decreases the logarithms of all losses at similar rates.

    With z = softmax(logits) and the lower bounds b_k of the losses, the step reduces

      sum_k z_k log(L_k - b_k + 1e-8)

    along the gradient scaled such that the weights w_k ~ z_k / (L_k - b_k + 1e-8) sum
    to 1. Then Adam takes a step in the logits against the decrease of the log losses,
    d_k = log(L_k(t) - b_k) - log(L_k(t + 1) - b_k), through the softmax: a task whose
    loss falls more slowly than the others gains.

    The official program and TorchJD take L_k(t + 1) from a second forward pass of the
    same batch after the step. This takes it from the next call of `update`, before that
    step: there is no second forward pass, and the two losses may be of different
    batches. On a single batch both are the same.

    A loss below its bound makes all weights NaN: values cannot be checked under
    `jax.jit`.

    For a task that is not active nothing changes, and the others are treated as if they
    were alone. Its next decrease is the one since it was last active.

    Args:
      num_tasks: N.
      min_losses: b_k, [N]; 0 by default.
      learning_rate: of the logits' Adam; a schedule counts the steps of each task.
      weight_decay: of the logits, added to their gradient. The paper, LibMTL and
        TorchJD have 1e-3; the official package and its experiments' programs 1e-2.

    Returns:
      A `LossWeighting`; its state is a `FAMOState`.

    Raises:
      ValueError: by `update` if the losses or bounds are not [N].

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> weighting = optim.famo(2)
      >>> state = weighting.init(None)
      >>> weights, state = weighting.update(jnp.array([1.0, 1.0]), None, state)
      >>> print(weights)
      [0.5 0.5]
      >>> weights, state = weighting.update(jnp.array([0.5, 0.9]), None, state)
      >>> print(state.logits.round(3))  # The second loss has fallen more slowly.
      [-0.025  0.025]

    References:
      Liu et al., `FAMO: Fast Adaptive Multitask Optimization
      <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023, algorithms 1 and 2.
    """
    tx = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))

    def init_fn(params):
        del params
        logits = jnp.zeros(num_tasks)
        return FAMOState(
            logits=logits,
            log_losses=jnp.zeros(num_tasks),
            is_seen=jnp.zeros(num_tasks, bool),
            opt_state=_task_axis.init_stacked(tx, logits[0], num_tasks),
        )

    def update_fn(losses, shared_gradients, state, active=None):
        del shared_gradients
        losses, active = checked(losses, active, num_tasks)
        bounds = vector("min_losses", min_losses, losses)
        log_losses = jnp.log(losses - bounds + _EPSILON)
        # The step before ends here, for those whose losses before and after are known.
        is_known = active & state.is_seen
        shares = jax.nn.softmax(state.logits, where=is_known)
        decrease = jnp.where(is_known, state.log_losses - log_losses, 0)
        slopes = shares * (decrease - (shares * decrease).sum())
        logits, opt_state = _task_axis.step_active(
            tx, slopes, state.opt_state, state.logits, is_known
        )
        new_state = FAMOState(
            logits=logits,
            log_losses=jnp.where(active, log_losses, state.log_losses),
            is_seen=state.is_seen | active,
            opt_state=opt_state,
        )
        return jax.nn.softmax(logits - log_losses, where=active), new_state

    return LossWeighting(init_fn, update_fn)
