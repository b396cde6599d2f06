"""Times training steps, and compares the time with the arithmetic that they need.

This module needs only JAX, Flax, optax, chex and absl, so it runs on a bare accelerator
machine.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax import losses, methods, optim
from mtl_jax import tasks as tasks_lib
from mtl_jax.experiments import arithmetic, hlo
from mtl_jax.models import MultiTaskUNet
from mtl_jax.models.encoders import ENCODERS
from mtl_jax.training import parallel
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState

ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """The network and the batch whose steps are timed.

    Attributes:
      encoder: encoder of the network.
      width: multiplier of its number of channels.
      image_size: pixels a side.
      batch_size: images in a batch.
      dtype: dtype of the computation, float32 or bfloat16.
      remat: whether the backward pass computes features anew, see `MultiTaskUNet`.
      devices: number of devices that share the batch.
      steps_per_dispatch: steps that one call makes.
      memory: where the images lie, on the host or the device.
    """

    encoder: str
    width: float
    image_size: int
    batch_size: int
    dtype: str
    remat: bool = False
    devices: int = 1
    steps_per_dispatch: int = 1
    memory: str = "host"

    def model(self, axis_name: str | None = None) -> MultiTaskUNet:
        """Makes the network."""
        return MultiTaskUNet(
            encoder=self.encoder,
            width=self.width,
            dtype=jnp.dtype(self.dtype),
            remat=self.remat,
            axis_name=axis_name,
        )


@dataclasses.dataclass(frozen=True)
class Method:
    """A method whose steps are timed.

    Attributes:
      create: makes the step and the optimizer from the network and its tasks.
      floor: computes the arithmetic of the method's passes. Its arguments are the
        arithmetic of a forward pass along each task's route, and of one for all tasks.
        A backward pass counts as two forward passes.
    """

    create: Callable[..., tuple[steps.TrainStep, steps.Optimizer]]
    floor: Callable[[Sequence[float], float], float]


def _trained_by(
    optimizer: Callable[[methods.Setting], steps.Optimizer], **options: Any
):
    def create(model, tasks, axis_name=None):
        made = optimizer(
            methods.default_setting(
                optax.adam(1e-4),
                len(tasks),
                jax.random.PRNGKey(1),
                ENCODERS[model.encoder].last_kernel,
            )
        )
        step = steps.train_step(model, tasks, made, axis_name=axis_name, **options)
        return step, made

    return create


def _unrolled(model, tasks):
    tx = optax.adam(1e-4)
    return _unrolled_step(model, tasks, tx), optim.independent(tx, len(tasks))


def _one_pass(routes, whole):
    return 3 * whole


def _task_by_task(routes, whole):
    return 3 * sum(routes)


def _one_forward(routes, whole):
    return (1 + 2 * len(routes)) * whole


def _norms_at_one_layer(routes, whole):
    # The gradients of dense tasks pass through the decoder to the encoder's last layer.
    # No gradients of the decoder's parameters are computed on the way.
    return 3 * whole + sum(route - min(routes) for route in routes)


_FLOORS = {
    "independent": _task_by_task,
    "alternating": _task_by_task,
    "random_grouping": lambda routes, whole: 6 * whole,  # Two groups.
    "gradnorm": _norms_at_one_layer,
    "per_task": _one_forward,
    **dict.fromkeys(methods.AGGREGATORS, _one_forward),
}

# The registered methods of one network.
REGISTERED = {
    name: Method(_trained_by(method.create), _FLOORS.get(name, _one_pass))
    for name, method in methods.METHODS.items()
    if method.create
}
# With other programs for the same methods, to compare their speed.
METHODS = REGISTERED | {
    "gradnorm_stacked": Method(
        _trained_by(
            lambda s: optax.chain(
                optim.gradnorm(s.num_tasks, shared=lambda path: path == s.last_shared),
                s.tx,
            )
        ),
        _one_forward,
    ),
    "independent_unrolled": Method(_unrolled, _task_by_task),
    "pcgrad_vmap": Method(
        _trained_by(lambda s: optax.chain(optim.pcgrad(s.key), s.tx), backward="vmap"),
        _one_forward,
    ),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that is timed.

    Attributes:
      start: compiles the program and makes its first step. Returns `compile_seconds`
        (of another library, which compiles as it runs, those of its first step) and
        what XLA counted: `xla_flops` and `memory_bytes` of a device.
      run: makes its steps, and returns when they are finished.
      num_parameters: number of the network's parameters.
      method: method of which it is a program.
      num_steps: steps of a run.
    """

    start: Callable[[], Mapping[str, float | None]]
    run: Callable[[], None]
    num_parameters: int
    method: str
    num_steps: int = 1


def measure(
    setting: Setting,
    names: Sequence[str],
    num_steps: int,
    others: Callable[[Setting, tasks_lib.Batch], Mapping[str, Program]] | None = None,
    input_rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Times steps of several methods in one process.

    The methods take turns, so that other work on the machine slows all of them.

    Args:
      setting: network and batch of all methods.
      names: names from `METHODS`; `independent_unrolled` is for one device.
      num_steps: timed steps of each method in each of `ROUNDS` rounds, at least.
      others: makes programs of another library, which take part in the turns.
      input_rates: images per second that the pipeline gives, `from_memory` and
        `from_files`.

    Returns:
      For each method: the setting, `parameters`, `compile_seconds` (see `Program`),
      `step_seconds` (median), `step_seconds_quartiles`, `images_per_second`,
      `time_over_vanilla` (None without vanilla), `floor_over_vanilla`,
      `formula_flops` of the passes' convolutions and products, `xla_flops` (see
      `hlo.flops`), `flops_per_second` by the formula, `share_of_matmul`, its ratio
      to the speed of a large matrix product, and `memory_bytes` of a device that the
      program needs. `device_peak_bytes` is what the device says that this process has
      taken so far; None where it does not say. What XLA counts is None for others.
      `input` are the ratios of `input_rates` to the images per second of the steps.
    """
    tasks = tasks_lib.build()
    batch = random_batch(setting.batch_size, setting.image_size)
    routes, whole = arithmetic.forward_flops(setting.model(), tasks, batch["image"])
    programs = {name: _program(name, setting, tasks, batch) for name in names}
    programs |= others(setting, batch) if others else {}
    counts = {name: program.start() for name, program in programs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            for _ in range(math.ceil(num_steps / program.num_steps)):
                seconds[name].append(_seconds(program.run) / program.num_steps)
    matmul = arithmetic.matmul_flops_per_second(jnp.dtype(setting.dtype))
    if jax.default_backend() != "cpu":
        matmul *= setting.devices
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    device = jax.devices()[0]
    results = []
    for name, times in seconds.items():
        floor = METHODS[programs[name].method].floor(routes, whole)
        speed = floor / medians[name]
        vanilla = medians.get("vanilla")
        results.append(
            {
                "method": name,
                **dataclasses.asdict(setting),
                "device": device.device_kind,
                "parameters": programs[name].num_parameters,
                "compile_seconds": counts[name]["compile_seconds"],
                "step_seconds": medians[name],
                "step_seconds_quartiles": np.quantile(times, [0.25, 0.75]).tolist(),
                "images_per_second": setting.batch_size / medians[name],
                "time_over_vanilla": vanilla and medians[name] / vanilla,
                "floor_over_vanilla": floor / (3 * whole),
                "formula_flops": floor,
                "xla_flops": counts[name].get("xla_flops"),
                "flops_per_second": speed,
                "share_of_matmul": speed / matmul,
                "memory_bytes": counts[name].get("memory_bytes"),
                "input": {
                    source: rate * medians[name] / setting.batch_size
                    for source, rate in (input_rates or {}).items()
                },
                "device_peak_bytes": (device.memory_stats() or {}).get(
                    "peak_bytes_in_use"
                ),
            }
        )
    return results


def measure_simulated(
    setting: Setting,
    names: Sequence[str],
    num_steps: int,
    input_rates: Mapping[str, float] | None,
) -> list[dict[str, Any]]:
    """As `measure`, with simulated devices, in a process that has not used JAX yet."""
    jax.config.update("jax_num_cpu_devices", setting.devices)
    return measure(setting, names, num_steps, input_rates=input_rates)


def _program(
    name: str,
    setting: Setting,
    tasks: Sequence[tasks_lib.Task],
    batch: Mapping[str, Any],
) -> Program:
    axis = (parallel.AXIS,) if setting.devices > 1 else ()
    model = setting.model(*axis)
    step, optimizer = METHODS[name].create(model, tasks, *axis)
    step = steps.scan_steps(steps.from_records(step))
    state = steps.create_train_state(model, optimizer, jax.random.key(0))
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    records: tasks_lib.Batch = {}
    if setting.memory == "device":
        records = jax.tree.map(jnp.asarray, batch)
        batch = {"index": np.arange(setting.batch_size, dtype=np.int32)}
    if axis:
        devices = jax.devices()[: setting.devices]
        mapped = parallel.map_step(step, devices)
        state, records = parallel.replicate((state, records), devices)
        batch = {k: v.reshape(len(devices), -1, *v.shape[1:]) for k, v in batch.items()}
    else:
        mapped = jax.jit(step, donate_argnums=0)
    # After the axis of devices.
    copies = [batch] * setting.steps_per_dispatch
    batches = jax.tree.map(lambda *x: np.stack(x, len(axis)), *copies)
    compiled: jax.stages.Compiled

    def start() -> Mapping[str, float | None]:
        nonlocal compiled
        begin = time.perf_counter()
        compiled = mapped.lower(state, batches, records).compile()
        seconds = time.perf_counter() - begin
        run()
        flops = hlo.flops(compiled)
        return {
            "compile_seconds": seconds,
            # Of the whole batch, as the formula.
            "xla_flops": flops and flops * setting.devices,
            "memory_bytes": hlo.memory_bytes(compiled),
        }

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, batches, records)
        jax.block_until_ready(metrics)

    return Program(start, run, num_parameters, name, setting.steps_per_dispatch)


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _unrolled_step(
    model: nn.Module,
    tasks: Sequence[tasks_lib.Task],
    tx: optax.GradientTransformation,
) -> steps.TrainStep:
    """Makes the step of Equation 3 as a loop over the tasks instead of a scan."""

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
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=jax.tree.map(lambda *x: jnp.stack(x), *opt_states),
        )
        return state, {"loss": jnp.stack(values)}

    return step


def random_batch(batch_size: int, image_size: int) -> dict[str, Any]:
    """Returns a batch of noise with every label, as the data pipeline gives batches."""
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
