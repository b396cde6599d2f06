"""Gradients of the tasks' losses, along the routes that the tasks need.

Tasks that share a route through the network (the encoder alone; encoder and decoder)
share its compiled program: the heads cost next to nothing beside it.

The tasks share one batch, or each has its own. In a batch of own batches, every array
has a task axis after the axis of examples: the images are [B, N, H, W, 3].

Gradients are accumulated over microbatches. As a loss is a sum over images, divided by
the number of labels of the whole batch, the sum over microbatches is the gradient of
the whole batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mtl_jax import losses, optim
from mtl_jax.tasks import Batch, Task


def has_task_axis(batch: Batch) -> bool:
    """Tells whether each task has its own batch, images [B, N, H, W, 3]."""
    return batch["image"].ndim == 5


def batch_of(index: int | jax.Array, batch: Batch) -> Batch:
    """Returns the batch of the task with this index: its own or the shared one."""
    if not has_task_axis(batch):
        return batch
    return {
        key: lax.dynamic_index_in_dim(values, index, axis=1, keepdims=False)
        for key, values in batch.items()
    }


def count_labels(
    tasks: Sequence[Task], batch: Batch, axis_name: str | None
) -> jax.Array:
    """[N] images of each task's batch that are annotated for it, on all devices."""
    labels = [
        task.is_labelled(batch_of(index, batch)) for index, task in enumerate(tasks)
    ]
    return psum(jnp.stack(labels).sum(1), axis_name)


def _losses(
    model: nn.Module, tasks: Sequence[Task], num_labels: jax.Array
) -> Callable[..., tuple[list[jax.Array], Any]]:
    """Losses of some tasks from one forward pass.

    Returns:
      `(params, batch_stats, batch, dropout_key, members) -> (shares, batch_stats)`,
      `batch` without a task axis, `members` indices of tasks, `shares` a list of this
      microbatch's parts of their losses on this device.
    """

    def losses_of(params, batch_stats, batch, dropout_key, members):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            heads=[tasks[i].name for i in members],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        shares = [
            losses.masked_mean(
                tasks[i].loss(logits[tasks[i].name], batch),
                tasks[i].is_labelled(batch),
                num_labels[i],
            )
            for i in members
        ]
        return shares, updated.get("batch_stats", batch_stats)

    return losses_of


def _add_up(
    compute: Callable[..., tuple[Any, Any]],
    accumulate: int,
    batch: Batch,
    key: jax.Array,
    carry: Any,
) -> tuple[Any, Any]:
    """Adds up what is computed of each microbatch, one after the other.

    Args:
      compute: `(batch, key, carry) -> (summands, carry)`.
      accumulate: number of microbatches.
      batch: without a task axis.
      key: random key of the batch.
      carry: passes from microbatch to microbatch.

    Returns:
      The sums and the last carry.
    """
    if accumulate == 1:
        return compute(batch, key, carry)
    # Every `accumulate`-th example: a microbatch then has the same examples, in the
    # same order, on any number of devices.
    microbatches = {
        name: values.reshape(-1, accumulate, *values.shape[1:]).swapaxes(0, 1)
        for name, values in batch.items()
    }

    def add(state, numbered):
        total, carry = state
        number, microbatch = numbered
        found, carry = compute(microbatch, jax.random.fold_in(key, number), carry)
        return (jax.tree.map(jnp.add, total, found), carry), None

    first = {name: values[0] for name, values in microbatches.items()}
    shapes, _ = jax.eval_shape(compute, first, key, carry)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    numbered = jnp.arange(accumulate), microbatches
    return lax.scan(add, (zeros, carry), numbered)[0]


def task_gradients(
    model: nn.Module,
    tasks: Sequence[Task],
    batch: Batch,
    dropout_key: jax.Array,
    axis_name: str | None,
    accumulate: int = 1,
) -> optim.TaskGradients:
    """The gradients of one task's loss, or of a group's, chosen by traced values.

    On a shared batch, a group with a dense task takes the route of all tasks, once for
    all its members. On batches of their own, the members pass one after the other, each
    along its own route; so do all tasks of a weighted sum.

    Args:
      model: network with a head for every task.
      tasks: in the optimizer's order.
      batch: images float in [0, 1]; with a task axis if each task has its own.
      dropout_key: of the step.
      axis_name: of the `jax.pmap` axis over devices, over which gradients are summed.
      accumulate: microbatches of a batch; a weighted sum of several needs the memory of
        N gradients.

    Returns:
      What a `SequentialOptimizer` asks; the carry is the batch statistics.
    """
    losses_of = _losses(model, tasks, count_labels(tasks, batch, axis_name))
    everything = list(range(len(tasks)))
    routes: dict[bool, list[int]] = {}
    for index, task in enumerate(tasks):
        routes.setdefault(task.is_dense, []).append(index)
    is_dense = jnp.array([task.is_dense for task in tasks])

    def loss(params, batch_stats, batch, key, chosen, members):
        # A group of one task drops what that task drops by itself.
        key = jax.random.fold_in(key, jnp.argmax(chosen))
        shares, batch_stats = losses_of(params, batch_stats, batch, key, members)
        shares = jnp.where(chosen[jnp.array(members)], jnp.stack(shares), 0.0)
        everyones = jnp.zeros(len(tasks)).at[jnp.array(members)].set(shares)
        return shares.sum(), (everyones, batch_stats)

    def along(routes, route, batch, chosen, params, batch_stats):
        branches = [
            jax.value_and_grad(functools.partial(loss, members=members), has_aux=True)
            for members in routes
        ]

        def compute(batch, key, batch_stats):
            (_, (shares, batch_stats)), gradient = lax.switch(
                route, branches, params, batch_stats, batch, key, chosen
            )
            return (shares, gradient), batch_stats

        total, batch_stats = _add_up(
            compute, accumulate, batch, dropout_key, batch_stats
        )
        values, gradient = psum(total, axis_name)
        return (values, batch_stats), gradient

    def of_task(index, params, batch_stats):
        order = list(routes)
        route = jnp.array([order.index(task.is_dense) for task in tasks])[index]
        chosen = jnp.arange(len(tasks)) == index
        own = batch_of(index, batch)
        (values, batch_stats), gradient = along(
            list(routes.values()), route, own, chosen, params, batch_stats
        )
        return (values[index], batch_stats), gradient

    if has_task_axis(batch):
        return _one_by_one(len(tasks), of_task)

    def of_group(mask, params, batch_stats):
        choice = [routes[False], everything] if len(routes) > 1 else [everything]
        route = (mask & is_dense).any().astype(jnp.int32)
        return along(choice, route, batch, mask, params, batch_stats)

    if accumulate > 1:
        compute = stacked_gradients(
            model, tasks, batch, dropout_key, axis_name, accumulate=accumulate
        )
        return optim.TaskGradients(
            len(tasks), of_task, of_group, _of_weighted_sum(compute)
        )

    def of_weighted_sum(weigh, params, batch_stats, active):
        del active  # The loss of a task without labels is 0 whatever the parameters.
        shares, of_tangents, after = jax.linearize(
            lambda params: losses_of(
                params, batch_stats, batch, dropout_key, everything
            ),
            params,
            has_aux=True,
        )

        def pull_back(members, put_in, leaves):
            """From cotangents of members' losses to those of some leaves."""

            def forward(leaves):
                tangents = of_tangents(put_in(leaves))
                return jnp.stack([tangents[i] for i in members])

            return jax.linear_transpose(forward, leaves)

        def shared_gradients(predicate):
            leaves, _ = optim.choose(params, predicate)
            _, put_in = optim.choose(jax.tree.map(jnp.zeros_like, params), predicate)
            # Route by route: no cotangent of a classification passes through the
            # decoder, and nothing of the decoder's own gradients is computed.
            by_route = [
                jax.vmap(pull_back(members, put_in, leaves))(
                    jnp.eye(len(members), dtype=shares[0].dtype)
                )[0]
                for members in routes.values()
            ]
            order = np.argsort([i for members in routes.values() for i in members])
            stacked = jax.tree.map(lambda *x: jnp.concatenate(x)[order], *by_route)
            return psum(stacked, axis_name)

        values = psum(jnp.stack(shares), axis_name)
        weights, aux = weigh(values, shared_gradients)
        (gradient,) = pull_back(everything, lambda params: params, params)(
            weights.astype(shares[0].dtype)
        )
        return (values, after, aux), psum(gradient, axis_name)

    return optim.TaskGradients(len(tasks), of_task, of_group, of_weighted_sum)


def _one_by_one(num_tasks: int, of_task: Callable[..., Any]) -> optim.TaskGradients:
    """Makes the gradients of groups and sums from those of single tasks.

    The carry passes from task to task.
    """

    def of_group(mask, params, carry):
        def visit(state, task):
            index, is_member = task

            def add(carry, total):
                (value, carry), gradient = of_task(index, params, carry)
                return (carry, jax.tree.map(jnp.add, total, gradient)), value

            def pass_by(carry, total):
                return (carry, total), jnp.zeros(())

            return lax.cond(is_member, add, pass_by, *state)

        start = carry, jax.tree.map(jnp.zeros_like, params)
        (carry, total), values = lax.scan(visit, start, (jnp.arange(num_tasks), mask))
        return (values, carry), total

    # Every task needs a backward pass anyway.
    of_weighted_sum = _of_weighted_sum(_stack(num_tasks, of_task))
    return optim.TaskGradients(num_tasks, of_task, of_group, of_weighted_sum)


def _of_weighted_sum(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the gradient of a weighted sum from all tasks' gradients.

    The gradients of a part of the parameters are a part of them.
    """

    def of_weighted_sum(weigh, params, carry, active):
        (values, carry), stacked = compute(params, carry)
        weights, aux = weigh(
            values, lambda predicate: optim.choose(stacked, predicate)[0]
        )
        gradient, _ = optim.weighted_sum(weights).update(
            stacked, optax.EmptyState(), active=active
        )
        return (values, carry, aux), gradient

    return of_weighted_sum


def _stack(num_tasks: int, of_task: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `(params, carry) -> ((losses [N], carry), gradients [N, ...])`."""

    def compute(params, carry):
        def visit(carry, index):
            (value, carry), gradient = of_task(index, params, carry)
            return carry, (value, gradient)

        carry, (values, stacked) = lax.scan(visit, carry, jnp.arange(num_tasks))
        return (values, carry), stacked

    return compute


def stacked_gradients(
    model: nn.Module,
    tasks: Sequence[Task],
    batch: Batch,
    dropout_key: jax.Array,
    axis_name: str | None,
    backward: optim.Backward = "scan",
    accumulate: int = 1,
) -> Callable[[Any, Any], tuple[tuple[jax.Array, Any], Any]]:
    """All tasks' gradients at one point.

    On a shared batch, there is one forward pass, and a backward pass for each task. On
    batches of their own, each task makes both, one task after the other. Microbatches
    are passed one after the other.

    Args:
      model: network with a head for every task.
      tasks: in the order of the leading axis.
      batch: images float in [0, 1]; with a task axis if each task has its own.
      dropout_key: of the step; tasks that share a batch see the same forward pass.
      axis_name: of the `jax.pmap` axis over devices, over which gradients are summed.
      backward: the backward passes of a shared batch one after the other, or all at
        once.
      accumulate: microbatches of a batch.

    Returns:
      `(params, batch_stats) -> ((losses [N], batch_stats), gradients)`, gradients with
      a leading task axis.
    """
    if has_task_axis(batch):
        own = task_gradients(model, tasks, batch, dropout_key, axis_name, accumulate)
        return _stack(len(tasks), own.of_task)
    losses_of = _losses(model, tasks, count_labels(tasks, batch, axis_name))
    everything = range(len(tasks))

    def compute(params, batch_stats):
        def of_microbatch(batch, key, batch_stats):
            def every_loss(params):
                shares, after = losses_of(params, batch_stats, batch, key, everything)
                return jnp.stack(shares), after

            (shares, after), found = optim.jacobian(
                every_loss, params, backward=backward, has_aux=True
            )
            return (shares, found), after

        total, after = _add_up(
            of_microbatch, accumulate, batch, dropout_key, batch_stats
        )
        values, gradients = psum(total, axis_name)
        return (values, after), gradients

    return compute


def psum(tree: Any, axis_name: str | None) -> Any:
    """Sum over the devices; outside `jax.pmap` there is one."""
    return tree if axis_name is None else lax.psum(tree, axis_name)
