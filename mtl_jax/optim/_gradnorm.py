"""GradNorm: task weights that keep the tasks' gradient norms in balance."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mtl_jax.optim import _paths, _task_axis
from mtl_jax.optim._weighted import LossWeighting

# Before the weights are renormalised. Adam's steps have the size of the learning rate
# whatever the gradient's, so that a weight near zero would be stepped across it.
_SMALLEST_WEIGHT = 1e-3

# The weights' Adam is given its gradients, and its epsilon, times this. Its steps are
# the same to the bit, and squares of norms up to 1e25 have a float32. Not less, or
# squares would be lost that count beside epsilon.
_ADAM_SCALE = 2.0**-20


class GradNormState(NamedTuple):
    """State of `gradnorm`.

    Attributes:
      weights: [N] float32, positive, of sum N; those of the next step.
      initial_losses: [N] float32, each task's first positive loss while it was active;
        0 before that.
      opt_state: N states of Adam, one for each weight, stacked. Adam is given 2^-20 of
        the gradients and of its epsilon, which makes the same steps of larger norms.
    """

    weights: jax.Array
    initial_losses: jax.Array
    opt_state: optax.OptState


def gradnorm(
    num_tasks: int,
    alpha: float | jax.Array = 1.5,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    shared: _paths.Predicate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Learns task weights w_k for which all tasks train at similar rates.

    For gradients that are at hand; `weighted` with `gradnorm_weighting` makes the same
    steps without computing all of them.

    With L_k the losses, G_k = w_k |g_k| the norms of the weighted gradients on the
    shared parameters, mean(G) their mean over the tasks, and r_k = (L_k / L_k(0)) /
    mean(L / L(0)) the relative inverse training rates, the weights descend

      sum_k | G_k - mean(G) r_k^alpha |

    by Adam, the target mean(G) r_k^alpha being held constant. They are then kept at
    1e-3 at least, which the paper leaves open, and scaled to sum N. The network's
    updates are sum_k w_k g_k with the weights from before this step.

    Its `update` takes the extra arguments `task_losses` (float [N], not weighted, not
    negative; required) and `active` (bool [N], None for all). A task that is not active
    is left out of the means, and its weight, initial loss and Adam state stay exactly
    as they are: every weight has an Adam of its own, which for active tasks is the
    same as one Adam for the vector. The weights of the active tasks are then
    scaled so that the sum stays N.

    Args:
      num_tasks: N.
      alpha: strength of the pull towards equal training rates; 0 makes the norms equal.
      learning_rate: of the weights' Adam; a schedule counts the steps of each task.
      shared: says of a parameter, by its path such as
        "encoder/block5_conv2/conv/kernel", whether its gradient counts in the norms.
        The paper takes the last layer that the tasks share. None: all parameters.
        `optax.inject_hyperparams` wants `static_args=("num_tasks", "shared")`.

    Returns:
      A transformation that takes updates with a leading task axis, [N, ...], to
      updates without it.

    Raises:
      ValueError: by `init` if `shared` holds for no parameter; by `update` if
        `task_losses` are missing or the gradients are of another number of tasks.

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
      Multitask Networks <https://arxiv.org/abs/1711.02257>`_, ICML 2018, algorithm 1.
    """
    weighting = gradnorm_weighting(num_tasks, alpha, learning_rate, shared)

    def update_fn(
        updates, state, params=None, *, task_losses=None, active=None, **extra_args
    ):
        del extra_args
        _task_axis.num_tasks(updates, params, expected=num_tasks)
        if task_losses is None:
            raise ValueError(
                "gradnorm weighs the tasks by their losses: pass update(..., "
                "task_losses=...), one number per task"
            )
        weights, state = weighting.update(
            task_losses, lambda chosen: _paths.choose(updates, chosen)[0], state, active
        )
        return _task_axis.combine(weights, updates), state

    return optax.GradientTransformationExtraArgs(weighting.init, update_fn)


def gradnorm_weighting(
    num_tasks: int,
    alpha: float | jax.Array = 1.5,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    shared: _paths.Predicate | None = None,
) -> LossWeighting:
    """GradNorm's weights at the price that Chen et al. have: norms at one layer.

    For `weighted`. The weights are those of `gradnorm`, and so are the arguments. Of a
    task's gradient only the part of the parameters that `shared` chooses is computed;
    the full backward pass is one, of the weighted sum.

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
    adam = optax.adam(learning_rate, eps=1e-8 * _ADAM_SCALE)

    def init_fn(params):
        _paths.choose(params, shared)
        return GradNormState(
            weights=jnp.ones(num_tasks),
            initial_losses=jnp.zeros(num_tasks),
            opt_state=_task_axis.init_stacked(adam, jnp.ones(()), num_tasks),
        )

    def update_fn(losses, shared_gradients, state, active=None):
        losses = jnp.asarray(losses, jnp.float32)
        active = jnp.asarray(True if active is None else active)
        active = jnp.broadcast_to(active, (num_tasks,))
        chex.assert_shape(losses, (num_tasks,))

        is_first = active & (state.initial_losses == 0) & (losses > 0)
        initial_losses = jnp.where(is_first, losses, state.initial_losses)
        gradient = _weight_gradient(
            state.weights,
            norms=_task_axis.norms(shared_gradients(shared), num_tasks, active),
            remaining=_remaining(losses, initial_losses, active),
            active=active,
            alpha=alpha,
        )
        steps, opt_state = jax.vmap(adam.update)(
            _ADAM_SCALE * gradient, state.opt_state
        )
        new_state = GradNormState(
            weights=_renormalised(state.weights + steps, state.weights, active),
            initial_losses=initial_losses,
            opt_state=_task_axis.select(active, opt_state, state.opt_state),
        )
        return state.weights, new_state

    return LossWeighting(init_fn, update_fn)


def _remaining(losses, initial_losses, active):
    """L_k / L_k(0), or 1 without an L_k(0), up to a factor that all tasks share."""
    mantissas, exponents = jnp.frexp(losses)
    initial_mantissas, initial_exponents = jnp.frexp(initial_losses)
    ratios = _ratio(mantissas, initial_mantissas)
    exponents = jnp.where(initial_losses > 0, exponents - initial_exponents, 0)
    # The largest is about 1, so that all that matter beside it have a float32.
    largest = exponents.max(initial=-1000, where=active & (ratios > 0))
    return jnp.ldexp(ratios, jnp.minimum(exponents - largest, 0))


def _weight_gradient(weights, norms, remaining, active, alpha):
    """Gradient [N] of sum_k | w_k |g_k| - target_k |, the targets held constant."""
    rates = _ratio(remaining, _mean(remaining, active))
    targets = _mean(weights * norms, active) * rates**alpha
    return jnp.where(active, jnp.sign(weights * norms - targets) * norms, 0)


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
