"""Pure training and evaluation steps, `step(state, batch) -> (state, metrics)`.

The tasks of a training step share its batch, or each has its own. With own batches,
every array has a task axis after the axis of examples: the images are [B, N, H, W, 3],
and task k is trained on the examples [:, k].
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from mtl_jax import optim
from mtl_jax.models.layers import example_index
from mtl_jax.tasks import Batch, Task
from mtl_jax.training import gradients, views
from mtl_jax.training.state import TrainState
from mtl_jax.training.views import View

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Augment = Callable[[jax.Array, Batch, jax.Array], Batch]
Optimizer = optim.SequentialOptimizer | optax.GradientTransformation

R = TypeVar("R")


def create_train_state(
    model: nn.Module, optimizer: Optimizer, key: jax.Array
) -> TrainState:
    """Fresh parameters, statistics and optimizer states; no image size is in them."""
    init_key, step_key = jax.random.split(key)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(model.init)(init_key, images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        key=step_key,
    )


def train_step(
    model: nn.Module,
    tasks: Sequence[Task],
    optimizer: Optimizer,
    *,
    axis_name: str | None = None,
    augment: Augment | None = None,
    backward: optim.Backward = "scan",
    accumulate: int = 1,
) -> TrainStep:
    """`sequential_step` or `joint_step`, whichever the optimizer is made for."""
    if isinstance(optimizer, optim.SequentialOptimizer):
        return sequential_step(
            model,
            tasks,
            optimizer,
            axis_name=axis_name,
            augment=augment,
            accumulate=accumulate,
        )
    return joint_step(
        model,
        tasks,
        optimizer,
        axis_name=axis_name,
        augment=augment,
        backward=backward,
        accumulate=accumulate,
    )


def sequential_step(
    model: nn.Module,
    tasks: Sequence[Task],
    optimizer: optim.SequentialOptimizer,
    *,
    axis_name: str | None = None,
    augment: Augment | None = None,
    accumulate: int = 1,
) -> TrainStep:
    """One visit of every task, or group of tasks, in turn: gradient and update.

    A task that no image of the batch (on any device) is annotated for is left out: it
    moves no parameter, no statistic, and not its optimizer state.

    Args:
      model: network with a head for every task.
      tasks: in the order of the visits.
      optimizer: such as `optim.independent` or `optim.alternating`.
      axis_name: of the `jax.pmap` axis over devices; None under plain `jax.jit`.
      augment: `(key, batch, index) -> batch` applied to the batch, images in [0, 1],
        index [B] of each example in the batch of all devices. It is given the examples
        of all tasks' own batches as one batch.
      accumulate: number of microbatches that each gradient is summed over, one after
        the other. It divides the images of a device.

    Returns:
      `step(state, batch)`; images are uint8, or float in [0, 1]. Its metrics are
      `loss` [N], `num_labels` [N], the images of a task's batch that are annotated for
      it, and those of `optimizer_metrics`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch, dropout_key, num_labels = _prepare(
            state, batch, tasks, axis_name, augment
        )
        params, opt_state, batch_stats, losses = optimizer.update(
            gradients.task_gradients(
                model, tasks, batch, dropout_key, axis_name, accumulate
            ),
            state.opt_state,
            state.params,
            state.batch_stats,
            active=num_labels > 0,
        )
        return _finish(state, params, batch_stats, opt_state, losses, num_labels)

    return step


def joint_step(
    model: nn.Module,
    tasks: Sequence[Task],
    tx: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    augment: Augment | None = None,
    backward: optim.Backward = "scan",
    accumulate: int = 1,
) -> TrainStep:
    """One update from the gradients of all tasks at one point.

    A task without an annotated image has the gradient zero; what else it means is up to
    `tx`, which is told by its extra argument `active`. Where no task has one, nothing
    moves.

    Args:
      model: network with a head for every task.
      tasks: in the order of the leading axis.
      tx: such as `optax.chain(optim.pcgrad(key), optax.adam(1e-4))`: its first member
        takes updates with a leading task axis. It may take the extra arguments
        `task_losses` and `active`, [N].
      axis_name: as for `sequential_step`.
      augment: as for `sequential_step`.
      backward: see `gradients.stacked_gradients`.
      accumulate: as for `sequential_step`.

    Returns:
      As `sequential_step`.
    """
    tx = optax.with_extra_args_support(tx)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch, dropout_key, num_labels = _prepare(
            state, batch, tasks, axis_name, augment
        )
        active = num_labels > 0
        compute = gradients.stacked_gradients(
            model, tasks, batch, dropout_key, axis_name, backward, accumulate
        )

        def update(params, batch_stats, opt_state):
            (losses, batch_stats), stacked = compute(params, batch_stats)
            updates, opt_state = tx.update(
                stacked, opt_state, params, task_losses=losses, active=active
            )
            return optax.apply_updates(params, updates), batch_stats, opt_state, losses

        def skip(params, batch_stats, opt_state):
            return params, batch_stats, opt_state, jnp.zeros(len(tasks))

        params, batch_stats, opt_state, losses = lax.cond(
            active.any(),
            update,
            skip,
            state.params,
            state.batch_stats,
            state.opt_state,
        )
        return _finish(state, params, batch_stats, opt_state, losses, num_labels)

    return step


def skip_nonfinite(step: TrainStep) -> TrainStep:
    """Undoes the steps that leave a loss or the state not finite.

    `optax.apply_if_finite` would not do: it sees the gradients of one optimizer. A
    method may have one for each task, the running averages are no gradients, and after
    its last error it lets the next one into the parameters.

    Args:
      step: such as `train_step` makes.

    Returns:
      `step(state, batch)`. Of a step that it undoes only the count remains, so that the
      next one has other dropout and augmentation. Its metrics have `skipped` [], bool.
    """

    def guarded(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch)
        changed = (new.params, new.batch_stats, new.opt_state, metrics["loss"])
        finite = jnp.stack(
            [
                jnp.isfinite(x).all()
                for x in jax.tree.leaves(changed)
                if jnp.issubdtype(x.dtype, jnp.inexact)
            ]
        ).all()
        old = dataclasses.replace(state, step=new.step)
        kept = lax.cond(finite, lambda: new, lambda: old)
        return kept, {**metrics, "skipped": ~finite}

    return guarded


def from_records(step: Callable[[TrainState, Batch], R]) -> Callable[..., R]:
    """Lets a step gather its batch from records that stay on the device.

    Args:
      step: such as `train_step` or `interference_step` makes.

    Returns:
      `step(state, batch, records)`, with records of arrays [n, ...]. A batch of the key
      `index` alone, int [B] or [B, N], has the examples at these places; any other has
      its own.
    """

    def gathered(state: TrainState, batch: Batch, records: Batch) -> R:
        if "index" in batch:
            places = batch["index"]
            batch = {
                k: v.at[places].get(mode="promise_in_bounds")
                for k, v in records.items()
            }
        return step(state, batch)

    return gathered


def scan_steps(
    step: Callable[..., tuple[TrainState, Metrics]],
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Makes one program of several steps, one after the other.

    Args:
      step: such as `train_step` makes.

    Returns:
      `steps(state, batches, ...)`, with a leading axis [K] of the batches' arrays and
      of the metrics of K steps. All steps have the same further arguments.
    """

    def several(state: TrainState, batches: Batch, *others: Batch):
        return lax.scan(lambda *carry: step(*carry, *others), state, batches)

    return several


def interference_step(
    model: nn.Module,
    tasks: Sequence[Task],
    *,
    axis_name: str | None = None,
    augment: Augment | None = None,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], Metrics]:
    """How the tasks' gradients stand to each other where a step is about to begin.

    Args:
      model: network with a head for every task.
      tasks: in the order of the results.
      axis_name: as for `sequential_step`.
      augment: as for `sequential_step`.
      accumulate: as for `sequential_step`.

    Returns:
      `step(state, batch)`, for the state and batch of a training step, gives `norm` [N]
      of the task gradients and `cosine` [N, N] between them, 0 for a task without an
      annotated image. It changes nothing.
    """

    def step(state: TrainState, batch: Batch) -> Metrics:
        batch, dropout_key, _ = _prepare(state, batch, tasks, axis_name, augment)
        _, stacked = gradients.stacked_gradients(
            model, tasks, batch, dropout_key, axis_name, accumulate=accumulate
        )(state.params, state.batch_stats)
        norm, cosine = optim.interference(stacked)
        return {"norm": norm, "cosine": cosine}

    return step


def optimizer_metrics(opt_state: optax.OptState) -> Metrics:
    """What the method's state tells about the step just made.

    Returns:
      The `metrics()` of every state in `opt_state` that has this method, such as
      `optim.PCGradState`: arrays [] or [N] by name.
    """
    metrics = {}
    for state in jax.tree.leaves(opt_state, is_leaf=_tells):
        if _tells(state):
            metrics |= state.metrics()
    return metrics


def _tells(state: Any) -> bool:
    return callable(getattr(state, "metrics", None))


def _prepare(
    state: TrainState,
    batch: Batch,
    tasks: Sequence[Task],
    axis_name: str | None,
    augment: Augment | None,
) -> tuple[Batch, jax.Array, jax.Array]:
    """The batch as the network sees it, the dropout's key, labels [N] of each task."""
    augment_key, dropout_key = jax.random.split(
        jax.random.fold_in(state.key, state.step)
    )
    batch = {**batch, "image": as_unit_range(batch["image"])}
    if gradients.has_task_axis(batch):
        chex.assert_axis_dimension(batch["image"], 1, len(tasks))
    if augment is not None:
        # [B], or [B, N]: every example of every task has a random stream of its own.
        leading = batch["image"].shape[:-3]
        examples = {
            k: v.reshape(-1, *v.shape[len(leading) :]) for k, v in batch.items()
        }
        index = example_index(examples["image"].shape[0], axis_name)
        examples = augment(augment_key, examples, index)
        batch = {k: v.reshape(*leading, *v.shape[1:]) for k, v in examples.items()}
    return batch, dropout_key, gradients.count_labels(tasks, batch, axis_name)


def _finish(
    state: TrainState,
    params: Any,
    batch_stats: Any,
    opt_state: Any,
    losses: jax.Array,
    num_labels: jax.Array,
) -> tuple[TrainState, Metrics]:
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    metrics = {"loss": losses, "num_labels": num_labels}
    return state, metrics | optimizer_metrics(opt_state)


def evaluation_step(
    model: nn.Module, tasks: Sequence[Task], view: View | None = None
) -> Callable[[Any, Batch], tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """What a trained network says of a batch.

    Args:
      model: network with a head for every task.
      tasks: whose losses are wanted.
      view: what the network sees of an image, if not all of it; its maps are pasted
        into the image, its losses are of what it sees.

    Returns:
      `step(variables, batch) -> (logits, losses)`, dicts by task: logits as the network
      gives them, losses [B] of each image, meaningless where it has no label. A batch
      of images alone is given no losses.
    """

    def of_seen(variables: Any, batch: Batch) -> tuple[Metrics, Metrics]:
        # pyrefly: ignore[bad-assignment]  # A pair only where `mutable` is given.
        logits: Metrics = model.apply(variables, batch["image"], train=False)
        if "has_label" not in batch:
            return logits, {}
        return logits, {t.name: t.loss(logits[t.name], batch) for t in tasks}

    def step(variables: Any, batch: Batch) -> tuple[Metrics, Metrics]:
        batch = {**batch, "image": as_unit_range(batch["image"])}
        if view is None:
            return of_seen(variables, batch)
        size = batch["image"].shape[1]
        windows = view.windows(batch)
        logits, losses = of_seen(variables, view.look(batch, windows))
        for task in (t for t in tasks if t.is_dense):
            logits[task.name] = views.paste(logits[task.name], windows, size)
        return logits, losses

    return step


def as_unit_range(images: jax.Array) -> jax.Array:
    """float32 images in [0, 1] from uint8 ones; float images are left as they are."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images
