"""Pure training and evaluation steps, `step(state, batch) -> (state, metrics)`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mtl_jax import losses, optim
from mtl_jax.models.layers import example_index
from mtl_jax.tasks import Batch, Task
from mtl_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def create_train_state(
    model: nn.Module,
    optimizer: optim.SequentialOptimizer,
    key: jax.Array,
) -> TrainState:
    """Fresh parameters, statistics and optimizer states; no image size is in them."""
    init_key, step_key = jax.random.split(key)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(model.init)(init_key, images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        key=step_key,
    )


def sequential_step(
    model: nn.Module,
    tasks: Sequence[Task],
    optimizer: optim.SequentialOptimizer,
    *,
    axis_name: str | None = None,
    augment: Callable[[jax.Array, Batch, jax.Array], Batch] | None = None,
) -> TrainStep:
    """One visit of every task in turn: forward, backward, that task's update.

    A task that no image of the batch (on any device) is annotated for is left out: it
    moves no parameter, no statistic, and not its optimizer state.

    Args:
      model: network with a head for every task.
      tasks: in the order of the visits.
      optimizer: `optim.independent` or another `SequentialOptimizer` of those tasks.
      axis_name: of the `jax.pmap` axis over devices; None under plain `jax.jit`.
      augment: `(key, batch, index) -> batch` applied to the batch, images in [0, 1],
        index [B] of each example in the batch of all devices.

    Returns:
      `step(state, batch)`; images are uint8, or float in [0, 1]. Its metrics are
      `loss` [N] and `num_labels` [N], the images annotated for each task.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key = jax.random.split(
            jax.random.fold_in(state.key, state.step)
        )
        batch = {**batch, "image": as_unit_range(batch["image"])}
        if augment is not None:
            index = example_index(batch["image"].shape[0], axis_name)
            batch = augment(augment_key, batch, index)
        labels = jnp.stack([batch["has_label"][:, task.label] for task in tasks])
        num_labels = psum(labels.sum(1), axis_name)
        params, opt_state, batch_stats, task_losses = optimizer.update(
            _task_gradient(model, tasks, batch, dropout_key, axis_name),
            state.opt_state,
            state.params,
            state.batch_stats,
            active=num_labels > 0,
        )
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, {"loss": task_losses, "num_labels": num_labels}

    return step


def _task_gradient(
    model: nn.Module,
    tasks: Sequence[Task],
    batch: Batch,
    dropout_key: jax.Array,
    axis_name: str | None,
) -> optim.TaskGradients:
    """The gradients of one task's loss, or of a group's, chosen by traced values.

    Tasks that share a route through the network share a branch of the switch: the heads
    cost next to nothing beside the route, and every branch is compiled in full. A group
    with a dense task takes the route of all tasks, once for all its members.
    """
    routes: dict[bool, list[int]] = {}
    for index, task in enumerate(tasks):
        routes.setdefault(task.is_dense, []).append(index)
    route_of = [0] * len(tasks)
    for route, members in enumerate(routes.values()):
        for index in members:
            route_of[index] = route
    is_dense = jnp.array([task.is_dense for task in tasks])

    def loss(params, batch_stats, chosen, members):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"],
            heads=[tasks[i].name for i in members],
            train=True,
            mutable=["batch_stats"],
            # A group of one task drops what that task drops by itself.
            rngs={"dropout": jax.random.fold_in(dropout_key, jnp.argmax(chosen))},
        )
        shares = [
            losses.masked_mean(
                task.loss(logits[task.name], batch),
                batch["has_label"][:, task.label],
                axis_name,
            )
            for task in (tasks[i] for i in members)
        ]
        members = jnp.array(members)
        shares = jnp.where(chosen[members], jnp.stack(shares), 0.0)
        shares = jnp.zeros(len(tasks)).at[members].set(shares)
        return shares.sum(), (shares, updated.get("batch_stats", batch_stats))

    def along(routes, route, chosen, params, batch_stats):
        branches = [
            jax.value_and_grad(functools.partial(loss, members=members), has_aux=True)
            for members in routes
        ]
        (_, (shares, batch_stats)), gradient = lax.switch(
            route, branches, params, batch_stats, chosen
        )
        values, gradient = psum((shares, gradient), axis_name)
        return (values, batch_stats), gradient

    def of_task(index, params, batch_stats):
        chosen = jnp.arange(len(tasks)) == index
        route = jnp.array(route_of)[index]
        (values, batch_stats), gradient = along(
            list(routes.values()), route, chosen, params, batch_stats
        )
        return (values[index], batch_stats), gradient

    def of_group(mask, params, batch_stats):
        everything = list(range(len(tasks)))
        choice = [routes[False], everything] if len(routes) > 1 else [everything]
        route = (mask & is_dense).any().astype(jnp.int32)
        return along(choice, route, mask, params, batch_stats)

    return optim.TaskGradients(len(tasks), of_task, of_group)


def evaluation_step(
    model: nn.Module, tasks: Sequence[Task]
) -> Callable[[Any, Batch], tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """What a trained network says of a batch.

    Returns:
      `step(variables, batch) -> (logits, losses)`, dicts by task: logits as the network
      gives them, losses [B] of each image, meaningless where it has no label. A batch
      of images alone is given no losses.
    """

    def step(variables, batch):
        images = as_unit_range(batch["image"])
        logits = model.apply(variables, images, train=False)
        if "has_label" not in batch:
            return logits, {}
        return logits, {t.name: t.loss(logits[t.name], batch) for t in tasks}

    return step


def as_unit_range(images: jax.Array) -> jax.Array:
    """float32 images in [0, 1] from uint8 ones; float images are left as they are."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images


def psum(tree: Any, axis_name: str | None) -> Any:
    """Sum over the devices; outside `jax.pmap` there is one."""
    return tree if axis_name is None else lax.psum(tree, axis_name)
