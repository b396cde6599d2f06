"""Random groups of tasks step in turn."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax.optim import _task_axis
from mtl_jax.optim._sequential import SequentialOptimizer, checked_active, step_or_skip

States = Literal["slot", "task"]


class RandomGroupingState(NamedTuple):
    """State of `random_grouping`.

    Attributes:
      count: int32, calls of `update`; with the key it gives the next one's groups.
      slots: the optax states of the m slots or of the N tasks, stacked on a leading
        axis.
    """

    count: jax.typing.ArrayLike
    slots: optax.OptState


def random_grouping(
    tx: optax.GradientTransformation,
    num_groups: int,
    key: jax.Array | None,
    *,
    states: States = "slot",
    num_tasks: int | None = None,
) -> SequentialOptimizer:
    """Divides the tasks into random groups, which step in turn.

    Each `update` divides the N tasks anew into m groups of equal size. If m does not
    divide N, the first N mod m groups have one task more. The gradients of group i are
    taken at the parameters that group i - 1 left. The optimizer states belong to slots
    or to tasks:

    - `slot`: the sum of the group's gradients goes through the i-th of m optimizer
      states. Such a state belongs to a position in the order, and sees the gradients of
      other tasks at every step. So m = N is not MTL-IO, although every task steps
      alone. With m = 1 the sum of all losses goes through `tx`. A group costs one call
      of `of_group`, so that fewer groups are faster.
    - `task`: each gradient of the group goes through the state of its own task, and the
      updates are summed, as in `per_task`. With m = N this is MTL-IO in a random order,
      and without a key it is `independent`. With m = 1 it makes the updates of
      `per_task`. It costs N states and N calls of `of_task` for every m. The carry
      passes from member to member.

    A task that is not active is left out of its group and keeps its state. A slot
    without an active task keeps its state too. The groups do not depend on which tasks
    are active.

    Args:
      tx: any optax transformation.
      num_groups: m, from 1 to N.
      key: for the groups. It is not part of the state, so that a checkpoint holds plain
        arrays. With None the groups are fixed: task k = 0..N-1 is in group k mod m, and
        the state of a slot is that of a group. The authors' program
        (github.com/lucaspascal/AITSO_MTL) also keeps its groups, which it draws once.
      states: `slot` or `task`.
      num_tasks: N, which `task` needs.

    Returns:
      A `SequentialOptimizer`. With `slot` it works for any number of tasks. Its
      `update` raises a ValueError if there are fewer tasks than groups, or if `task`
      was given another `num_tasks`.

    Raises:
      ValueError: if `num_groups` is less than 1, `states` has another value, or `task`
        comes without `num_tasks`.

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
      <https://arxiv.org/abs/2109.11678>`_, 2021, for `slot`; `task` is ours.
    """
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}")
    if states == "slot":
        step, num_states = _step_by_slots, num_groups
    elif states == "task":
        if num_tasks is None:
            raise ValueError("a state for each task needs num_tasks")
        step, num_states = _step_by_tasks, num_tasks
    else:
        raise ValueError(f"states must be 'slot' or 'task', got {states!r}")

    def init_fn(params):
        slots = _task_axis.init_stacked(tx, params, num_states)
        return RandomGroupingState(jnp.zeros((), jnp.int32), slots)

    def update_fn(task_gradients, state, params, carry=None, active=None):
        active = checked_active(task_gradients, active)
        n = task_gradients.num_tasks
        if states == "task":
            _task_axis.check_num_tasks(n, num_states)
        this_key = None if key is None else jax.random.fold_in(key, state.count)
        groups = _random_groups(this_key, n, num_groups)
        params, carry, slots, losses = step(
            tx, task_gradients, groups, active, params, carry, state.slots
        )
        state = RandomGroupingState(optax.safe_increment(state.count), slots)
        return params, state, carry, losses

    return SequentialOptimizer(init_fn, update_fn)


def _step_by_slots(tx, task_gradients, groups, active, params, carry, states):
    """Passes the gradient of each group's summed losses through the slot's state."""
    if active is not None:
        groups &= active

    def visit(point, group):
        params, carry, states = point
        mask, slot = group
        params, carry, states, losses = step_or_skip(
            tx,
            functools.partial(task_gradients.of_group, mask),
            None if active is None else mask.any(),
            params,
            carry,
            states,
            jnp.zeros(mask.shape, jnp.float32),
            slot,
        )
        return (params, carry, states), losses

    (params, carry, states), losses = lax.scan(
        visit, (params, carry, states), (groups, jnp.arange(len(groups)))
    )
    # A task has its loss in its own group and 0 in the others.
    return params, carry, states, losses.sum(0)


def _step_by_tasks(tx, task_gradients, groups, active, params, carry, states):
    """Passes each task's gradient, taken where its group began, through its state."""
    group_of = groups.argmax(0)
    # Group by group, and within a group in the order of the tasks: the sort is stable.
    order = jnp.argsort(group_of)
    begins = jnp.diff(group_of[order], prepend=-1) > 0

    def visit(point, task):
        start, params, carry, states = point
        index, begins_group = task
        start = jax.tree.map(functools.partial(jnp.where, begins_group), params, start)

        def update_at_start(updates, state, params=None):
            del params
            return tx.update(updates, state, start)

        params, carry, states, loss = step_or_skip(
            optax.GradientTransformation(tx.init, update_at_start),
            lambda _, carry: task_gradients.of_task(index, start, carry),
            None if active is None else active[index],
            params,
            carry,
            states,
            jnp.float32(0),
            index,
        )
        return (start, params, carry, states), loss

    (_, params, carry, states), losses = lax.scan(
        visit, (params, params, carry, states), (order, begins)
    )
    return params, carry, states, jnp.zeros_like(losses).at[order].set(losses)


def _random_groups(key: jax.Array | None, num_tasks: int, num_groups: int) -> jax.Array:
    """Which tasks are in which group, bool [num_groups, num_tasks]."""
    if num_groups > num_tasks:
        raise ValueError(f"{num_tasks} tasks cannot fill {num_groups} groups")
    group_of = jnp.arange(num_tasks) % num_groups
    if key is not None:
        group_of = jax.random.permutation(key, group_of)
    return group_of == jnp.arange(num_groups)[:, None]
