"""Dynamic weight average: a task weighs more, the less its loss has fallen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.optim._scalarization import checked
from mtl_jax.optim._weighted import LossWeighting


class DWAState(NamedTuple):
    """State of `dwa`.

    Attributes:
      count: int32, steps of the current epoch.
      sums: [N] float32, losses of the current epoch, while the task was active.
      num_active: [N] int32, steps of the current epoch in which the task was active.
      averages: [2, N] float32, mean losses of the task's last two epochs, the older one
        first.
      num_epochs: [N] int32, epochs in which the task was active, at most 2.
    """

    count: jax.typing.ArrayLike
    sums: jax.Array
    num_active: jax.Array
    averages: jax.Array
    num_epochs: jax.Array


def dwa(
    num_tasks: int, temperature: float | jax.Array = 2.0, *, steps_per_epoch: int
) -> LossWeighting:
    """Weighs the tasks by the ratio of their losses in the last two epochs.

    With the mean losses L_k of the last epoch and of the one before, the weights are

      w_k = N exp(r_k / T) / sum_j exp(r_j / T),  r_k = L_k(t - 1) / L_k(t - 2)

    In the first two epochs they are 1. The losses may be negative, but they should not
    change their sign from one epoch to the next.

    `update` counts its calls, and `steps_per_epoch` of them are an epoch. TorchJD's
    `step()`, which ends an epoch, has no counterpart.

    A task's mean is over the steps in which it was active. An epoch without such a step
    does not count for it, and a task that has not been active in two epochs has r_k =
    1. N and the sum are of the active tasks.

    Args:
      num_tasks: N.
      temperature: T, positive. Larger ones make the weights more equal.
      steps_per_epoch: steps whose losses are averaged.

    Returns:
      A `LossWeighting`; its state is a `DWAState`.

    Raises:
      ValueError: by `update` if the losses are not [N].

    Example:
      >>> import jax.numpy as jnp
      >>> from mtl_jax import optim
      >>> weighting = optim.dwa(2, steps_per_epoch=1)
      >>> state = weighting.init(None)
      >>> for losses in [(1.0, 4.0), (1.0, 2.0), (0.5, 2.0)]:
      ...     weights, state = weighting.update(jnp.array(losses), None, state)
      >>> bool(weights[0] > weights[1])  # The second task's loss has halved.
      True

    References:
      Liu et al., `End-to-End Multi-Task Learning with Attention
      <https://arxiv.org/abs/1803.10704>`_, CVPR 2019, equation 7.
    """

    def init_fn(params):
        del params
        return DWAState(
            count=jnp.zeros((), jnp.int32),
            sums=jnp.zeros(num_tasks),
            num_active=jnp.zeros(num_tasks, jnp.int32),
            averages=jnp.zeros((2, num_tasks)),
            num_epochs=jnp.zeros(num_tasks, jnp.int32),
        )

    def update_fn(losses, shared_gradients, state, active=None):
        del shared_gradients
        losses, active = checked(losses, active, num_tasks)
        older, newer = state.averages
        is_known = (state.num_epochs == 2) & (older != 0)
        rates = jnp.where(is_known, newer / jnp.where(is_known, older, 1), 1)
        weights = jax.nn.softmax(rates / temperature, where=active) * active.sum()
        return weights, _after(state, losses, active)

    def _after(state, losses, active):
        count = state.count + 1
        sums = state.sums + jnp.where(active, losses, 0).astype(state.sums.dtype)
        num_active = state.num_active + active
        is_over = count == steps_per_epoch
        # The tasks for which this step ends an epoch.
        ends = is_over & (num_active > 0)
        average = sums / jnp.maximum(num_active, 1)
        averages = jnp.stack([state.averages[1], average])
        return DWAState(
            count=jnp.where(is_over, 0, count),
            sums=jnp.where(is_over, 0, sums),
            num_active=jnp.where(is_over, 0, num_active),
            averages=jnp.where(ends, averages, state.averages),
            num_epochs=jnp.minimum(state.num_epochs + ends, 2),
        )

    return LossWeighting(init_fn, update_fn)
