"""What training steps cost beside each other."""

import statistics
import time
from collections.abc import Sequence
from typing import Any, Literal

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

Comparison = Literal["loop", "backward", "methods"]


def compare(
    comparison: Comparison,
    encoder: str,
    width: float,
    image_size: int,
    batch_size: int,
    num_steps: int,
) -> dict[str, dict[str, float]]:
    """Times several training steps in one process.

    They take turns, so that what else the machine does meets all of them.

    Args:
      comparison: `loop`, MTL-IO as a scan over tasks and as an unrolled loop;
        `backward`, joint steps with their backward passes in a scan and in a vmap;
        `methods`, a step of each method.
      encoder: of the network.
      width: multiplier of its channels.
      image_size: pixels a side.
      batch_size: images in a batch.
      num_steps: timed steps of each, in each of `ROUNDS` rounds.

    Returns:
      `compile_seconds` (with the first step) and `step_seconds` (median) of each.
    """
    model = MultiTaskUNet(encoder=encoder, width=width)
    candidates = {"loop": _loop, "backward": _backward, "methods": _methods}
    batch = _random_batch(batch_size, image_size)
    programs, states, results = {}, {}, {}
    for name, (step, optimizer) in candidates[comparison](model).items():
        programs[name] = jax.jit(step, donate_argnums=0)
        state = steps.create_train_state(model, optimizer, jax.random.key(0))
        start = time.perf_counter()
        states[name], metrics = programs[name](state, batch)
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


_Candidates = dict[str, tuple[steps.TrainStep, steps.Optimizer]]


def _loop(model: nn.Module) -> _Candidates:
    tasks, tx = tasks_lib.build(), optax.adam(1e-4)
    optimizer = optim.independent(tx, len(tasks))
    return {
        "scan": (steps.sequential_step(model, tasks, optimizer), optimizer),
        "loop": (_unrolled_step(model, tasks, tx), optimizer),
    }


def _backward(model: nn.Module) -> _Candidates:
    tasks = tasks_lib.build()
    tx = optax.chain(optim.weighted_sum(), optax.adam(1e-4))
    return {
        name: (steps.joint_step(model, tasks, tx, backward=name), tx)
        for name in ("scan", "vmap")
    }


def _methods(model: nn.Module) -> _Candidates:
    tasks, tx = tasks_lib.build(), optax.adam(1e-4)
    count, key = len(tasks), jax.random.key(1)
    optimizers = {
        "independent": optim.independent(tx, count),
        "alternating": optim.alternating(tx),
        "random_grouping, 2 groups": optim.random_grouping(tx, 2, key),
        "vanilla": optim.random_grouping(tx, 1, key),
        "pcgrad": optax.chain(optim.pcgrad(key), tx),
        "gradnorm": optax.chain(optim.gradnorm(count), tx),
        "per_task": optim.per_task(tx, count),
    }
    return {
        name: (steps.train_step(model, tasks, optimizer), optimizer)
        for name, optimizer in optimizers.items()
    }


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
                labelled = task.is_labelled(batch)
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
