"""Times training steps, and compares the time with the arithmetic that they need.

This module needs only JAX, Flax, optax, chex and absl, so it runs on a bare accelerator
machine.
"""

import dataclasses
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
from mtl_jax.models import MultiTaskUNet
from mtl_jax.models.encoders import ENCODERS
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState

ROUNDS = 3

KEY = jax.random.PRNGKey(1)

# Side of the matrices whose product is timed. Accelerators need larger ones.
MATRIX = {"cpu": 2048}
LARGE_MATRIX = 8192


@dataclasses.dataclass(frozen=True)
class Setting:
    """The network and the batch whose steps are timed.

    Attributes:
      encoder: encoder of the network.
      width: multiplier of its number of channels.
      image_size: pixels a side.
      batch_size: images in a batch.
      dtype: dtype of the computation, float32 or bfloat16.
    """

    encoder: str
    width: float
    image_size: int
    batch_size: int
    dtype: str


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
                optax.adam(1e-4), len(tasks), KEY, ENCODERS[model.encoder].last_kernel
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
      run: makes one step, and returns when it is finished.
      num_parameters: number of the network's parameters.
      method: method of which it is a program.
    """

    run: Callable[[], None]
    num_parameters: int
    method: str


def measure(
    setting: Setting,
    names: Sequence[str],
    num_steps: int,
    others: Callable[[Setting, tasks_lib.Batch], Mapping[str, Program]] | None = None,
) -> list[dict[str, Any]]:
    """Times steps of several methods in one process.

    The methods take turns, so that other work on the machine slows all of them.

    Args:
      setting: network and batch of all methods.
      names: names from `METHODS`.
      num_steps: timed steps of each method in each of `ROUNDS` rounds.
      others: makes programs of another library, which take part in the turns.

    Returns:
      For each method: the setting, `parameters`, `compile_seconds` (the first step),
      `step_seconds` (median), `step_seconds_quartiles`, `images_per_second`,
      `time_over_vanilla` (None without vanilla), `floor_over_vanilla`,
      `flops_per_second` of the passes' convolutions and products, and
      `share_of_matmul`, its ratio to the speed of a large matrix product.
    """
    model = MultiTaskUNet(
        encoder=setting.encoder,
        width=setting.width,
        dtype=jnp.dtype(setting.dtype),
    )
    tasks = tasks_lib.build()
    batch = random_batch(setting.batch_size, setting.image_size)
    routes, whole = forward_flops(model, tasks, batch["image"])
    programs = {name: _program(name, model, tasks, batch) for name in names}
    programs |= others(setting, batch) if others else {}
    compile_seconds = {name: _seconds(it.run) for name, it in programs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            seconds[name] += [_seconds(program.run) for _ in range(num_steps)]
    matmul = _matmul_flops_per_second(jnp.dtype(setting.dtype))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    results = []
    for name, times in seconds.items():
        floor = METHODS[programs[name].method].floor(routes, whole)
        speed = floor / medians[name]
        vanilla = medians.get("vanilla")
        results.append(
            {
                "method": name,
                **dataclasses.asdict(setting),
                "device": jax.devices()[0].device_kind,
                "parameters": programs[name].num_parameters,
                "compile_seconds": compile_seconds[name],
                "step_seconds": medians[name],
                "step_seconds_quartiles": np.quantile(times, [0.25, 0.75]).tolist(),
                "images_per_second": setting.batch_size / medians[name],
                "time_over_vanilla": vanilla and medians[name] / vanilla,
                "floor_over_vanilla": floor / (3 * whole),
                "flops_per_second": speed,
                "share_of_matmul": speed / matmul,
            }
        )
    return results


def _program(
    name: str, model: nn.Module, tasks: Sequence[tasks_lib.Task], batch: tasks_lib.Batch
) -> Program:
    step, optimizer = METHODS[name].create(model, tasks)
    program = jax.jit(step, donate_argnums=0)
    state = steps.create_train_state(model, optimizer, jax.random.key(0))

    def run() -> None:
        nonlocal state
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)

    return Program(run, sum(x.size for x in jax.tree.leaves(state.params)), name)


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(results: Sequence[dict[str, Any]]) -> str:
    """Formats the results as Markdown."""
    lines = [
        "| method | encoder | pixels | batch | dtype | #P | compile s | step s "
        "(quartiles) | images/s | over vanilla | floor | GFLOP/s | of matmul |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        low, high = row["step_seconds_quartiles"]
        over = row["time_over_vanilla"]
        over = "-" if over is None else f"{over:.2f}"
        lines.append(
            f"| {row['method']} | {row['encoder']} x {row['width']:g} "
            f"| {row['image_size']} | {row['batch_size']} | {row['dtype']} "
            f"| {row['parameters']:,} | {row['compile_seconds']:.1f} "
            f"| {row['step_seconds']:.3f} ({low:.3f}-{high:.3f}) "
            f"| {row['images_per_second']:.1f} | {over} "
            f"| {row['floor_over_vanilla']:.2f} | {row['flops_per_second'] / 1e9:.0f} "
            f"| {row['share_of_matmul']:.0%} |"
        )
    return "\n".join(lines)


def forward_flops(
    model: nn.Module, tasks: Sequence[tasks_lib.Task], images: np.ndarray
) -> tuple[list[float], float]:
    """Counts the arithmetic of a forward pass for each task, and for all together."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images.astype(np.float32))

    def count(heads):
        jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, heads=heads))(
            shapes, images.astype(np.float32)
        )
        return _flops(jaxpr.jaxpr)

    names = [task.name for task in tasks]
    return [count([name]) for name in names], count(names)


def _flops(jaxpr: Any) -> float:
    """Counts the additions and multiplications in convolutions and products."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += 2 * equation.outvars[0].aval.size * kernel.size / kernel.shape[-1]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            depth = np.prod([left.shape[axis] for axis in contracted])
            total += 2 * equation.outvars[0].aval.size * depth
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += _flops(inner)
    return float(total)


def _matmul_flops_per_second(dtype: Any) -> float:
    """Measures how fast this device multiplies large matrices."""
    side = MATRIX.get(jax.default_backend(), LARGE_MATRIX)
    matrix = jnp.ones((side, side), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds)


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
