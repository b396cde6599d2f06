"""What the scan over tasks costs beside a plain Python loop over them."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax import losses, optim
from mtl_jax import tasks as tasks_lib
from mtl_jax.models import MultiTaskUNet
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState

ROUNDS = 3


def compare_scan_with_loop(
    encoder: str, width: float, image_size: int, batch_size: int, num_steps: int
) -> dict[str, dict[str, float]]:
    """Times MTL-IO as a scan over tasks and as an unrolled loop, in one process.

    The two take turns, so that what else the machine does meets both.

    Args:
      encoder: of the network.
      width: multiplier of its channels.
      image_size: pixels a side.
      batch_size: images in a batch.
      num_steps: timed steps of each, in each of `ROUNDS` rounds.

    Returns:
      `compile_seconds` (with the first step) and `step_seconds` (median) of each.
    """
    model = MultiTaskUNet(encoder=encoder, width=width)
    tasks = tasks_lib.build()
    tx = optax.adam(1e-4)
    optimizer = optim.independent(tx, len(tasks))
    programs = {
        "scan": jax.jit(
            steps.sequential_step(model, tasks, optimizer), donate_argnums=0
        ),
        "loop": jax.jit(_unrolled_step(model, tasks, tx), donate_argnums=0),
    }
    batch = _random_batch(batch_size, image_size)
    states, results = {}, {}
    for name, program in programs.items():
        state = steps.create_train_state(model, optimizer, jax.random.key(0))
        start = time.perf_counter()
        states[name], metrics = program(state, batch)
        jax.block_until_ready(metrics)
        results[name] = {"compile_seconds": time.perf_counter() - start}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            for _ in range(num_steps):
                start = time.perf_counter()
                states[name], metrics = program(states[name], batch)
                jax.block_until_ready(metrics)
                seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        results[name]["step_seconds"] = statistics.median(times)
    return results


def _unrolled_step(
    model: nn.Module,
    tasks: Sequence[tasks_lib.Task],
    tx: optax.GradientTransformation,
) -> steps.TrainStep:
    """Equation 3 written out, each task with its own forward and backward pass."""

    def step(state: TrainState, batch: tasks_lib.Batch):
        _, key = jax.random.split(jax.random.fold_in(state.key, state.step))
        images = steps.as_unit_range(batch["image"])
        params, batch_stats = state.params, state.batch_stats
        values, opt_states = [], []
        for index, task in enumerate(tasks):

            def loss(params, batch_stats=batch_stats, index=index, task=task):
                logits, updated = model.apply(
                    {"params": params, "batch_stats": batch_stats},
                    images,
                    heads=[task.name],
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.fold_in(key, index)},
                )
                labelled = batch["has_label"][:, task.label]
                value = task.loss(logits[task.name], batch)
                return losses.masked_mean(value, labelled), updated["batch_stats"]

            (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(
                params
            )
            opt_state = jax.tree.map(lambda x, i=index: x[i], state.opt_state)
            updates, opt_state = tx.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            values.append(value)
            opt_states.append(opt_state)
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=jax.tree.map(lambda *x: jnp.stack(x), *opt_states),
        )
        return state, {"loss": jnp.stack(values)}

    return step


def _random_batch(batch_size: int, image_size: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size)
    return {
        "image": rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        "disc_mask": rng.integers(0, 2, shape, dtype=np.uint8),
        "cup_mask": rng.integers(0, 2, shape, dtype=np.uint8),
        "fovea_xy": rng.uniform(0, image_size, (batch_size, 2)).astype(np.float32),
        "glaucoma": rng.integers(0, 2, batch_size).astype(np.float32),
        "has_label": np.ones((batch_size, 4), bool),
    }
