"""Random groups of tasks step in turn."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim import _task_axis
from mtl_jax.optim._sequential import SequentialOptimizer, checked_active, step_or_skip


class RandomGroupingState(NamedTuple):
    """State of `random_grouping`.

    Attributes:
      count: int32, calls of `update`; with the key it gives the next one's groups.
      slots: the optax states of the m slots, stacked on a leading axis.
    """

    count: jax.Array
    slots: optax.OptState


def random_grouping(
    tx: optax.GradientTransformation, num_groups: int, key: jax.Array
) -> SequentialOptimizer:
    """The tasks are put into random groups, which step in turn.

    At every `update` the N tasks are divided anew into m groups, as equal in size as
    can be (the first N mod m have one task more). The i-th group's step goes along the
    gradient of the sum of its losses, taken where group i - 1 left the parameters,
    through the i-th of m optimizer states. m = 1 is the plain sum of the losses through
    `tx`; m = N steps every task alone. A step of a group costs what `of_group` of the
    `TaskGradients` costs, so that fewer groups are faster.

    Tasks that are not active are left out of their groups, and a group without an
    active task is skipped: its state stays as it is. Active and inactive tasks are
    drawn alike, so that the groups do not depend on who is active.

    Args:
      tx: any optax transformation.
      num_groups: m, from 1 to N.
      key: for the groups. It is no part of the state, which checkpoints as plain
        arrays.

    Returns:
      A `SequentialOptimizer`, of as many tasks as the `TaskGradients` it is given. Its
      `update` raises a ValueError if these are fewer than the groups.

    Raises:
      ValueError: if `num_groups` is less than 1.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from mtl_jax import optim
      >>> losses = [
      ...     lambda w, carry, k=k: (jnp.sum((w - k) ** 2), carry) for k in range(4)
      ... ]
      >>> optimizer = optim.random_grouping(optax.adam(0.1), 2, jax.random.key(0))
      >>> w = jnp.zeros(3)
      >>> w, state, _, values = optimizer.update(
      ...     optim.task_gradients(losses), optimizer.init(w), w
      ... )
      >>> values.shape
      (4,)

    References:
      Pascal et al., `Improved optimization strategies for deep Multi-Task Networks
      <https://arxiv.org/abs/2109.11678>`_, 2021.
    """
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")

    def init_fn(params):
        slots = _task_axis.init_stacked(tx, params, num_groups)
        return RandomGroupingState(jnp.zeros((), jnp.int32), slots)

    def update_fn(task_gradients, state, params, carry=None, active=None):
        active = checked_active(task_gradients, active)
        groups = _random_groups(
            jax.random.fold_in(key, state.count), task_gradients.num_tasks, num_groups
        )
        if active is not None:
            groups &= active

        def visit(point, group):
            mask, slot = group
            params, carry, slot, losses = step_or_skip(
                tx,
                functools.partial(task_gradients.of_group, mask),
                None if active is None else mask.any(),
                *point,
                slot,
                jnp.zeros(mask.shape, jnp.float32),
            )
            return (params, carry), (slot, losses)

        (params, carry), (slots, losses) = lax.scan(
            visit, (params, carry), (groups, state.slots)
        )
        state = RandomGroupingState(optax.safe_increment(state.count), slots)
        # A task has its loss in its own group and 0 in the others.
        return params, state, carry, losses.sum(0)

    return SequentialOptimizer(init_fn, update_fn)


def _random_groups(key: jax.Array, num_tasks: int, num_groups: int) -> jax.Array:
    """Which tasks are in which group, bool [num_groups, num_tasks]."""
    if num_groups > num_tasks:
        raise ValueError(f"{num_tasks} tasks cannot fill {num_groups} groups")
    group_of = jax.random.permutation(key, jnp.arange(num_tasks) % num_groups)
    return group_of == jnp.arange(num_groups)[:, None]
