"""Times aggregators by themselves, without the backward passes.

The floor is the time in which the device reads all gradients once.
"""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax import machine, methods
from mtl_jax.models import MultiTaskUNet

# The whole network with the paper's tasks; a quarter of its channels with more tasks.
SETTINGS = ((4, 1.0), (16, 0.25))

# TorchJD's counterparts: `aggregation` is `torchjd.aggregation`, n the number of tasks.
TORCHJD: dict[str, Callable[[Any, int], Any]] = {
    "pcgrad": lambda aggregation, n: aggregation.PCGrad(),
    "mgda": lambda aggregation, n: aggregation.MGDA(),
    "cagrad": lambda aggregation, n: aggregation.CAGrad(0.5),
    "nash_mtl": lambda aggregation, n: aggregation.NashMTL(n),
    "fairgrad": lambda aggregation, n: aggregation.FairGrad(1.0),
    "upgrad": lambda aggregation, n: aggregation.UPGrad(),
    "dualproj": lambda aggregation, n: aggregation.DualProj(),
    "imtl_g": lambda aggregation, n: aggregation.IMTLG(),
    "aligned_mtl": lambda aggregation, n: aggregation.AlignedMTL(),
    "conflict_free": lambda aggregation, n: aggregation.ConFIG(),
    "gradvac": lambda aggregation, n: aggregation.GradVac(),
    "pcd": lambda aggregation, n: aggregation.PCD(),
    "krum": lambda aggregation, n: aggregation.Krum(1),
    "random_weighting": lambda aggregation, n: aggregation.Random(),
    "graddrop": lambda aggregation, n: aggregation.GradDrop(),
    "trimmed_mean": lambda aggregation, n: aggregation.TrimmedMean(1),
    "excess_mtl": lambda aggregation, n: aggregation.ExcessMTL(),
}


def measure(
    names: Sequence[str], num_tasks: int, width: float, num_rounds: int
) -> list[dict[str, Any]]:
    """Times aggregators on the same random gradients, in one process.

    All take turns, TorchJD's among them, so that other work on the machine slows all.
    TorchJD is given the gradients as one matrix, on the CPU.

    Args:
      names: some of `methods.AGGREGATORS`.
      num_tasks: N.
      width: multiplier of the channels of the VGG-13 network whose parameters have the
        gradients.
      num_rounds: calls of each.

    Returns:
      For each aggregator `method`, `num_tasks`, `num_parameters`, `seconds` (median),
      `floor_seconds`, `over_floor`, and `torchjd_seconds`, None where TorchJD is not
      installed or has no such method.
    """
    model = MultiTaskUNet(encoder="vgg13", width=width)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda leaf: jnp.asarray(
            rng.standard_normal((num_tasks, *leaf.shape), np.float32)
        ),
        shapes["params"],
    )
    params = jax.tree.map(lambda leaf: leaf[0], gradients)
    losses = jnp.ones(num_tasks)
    calls = {"floor": _reading(gradients)}
    setting = methods.default_setting(optax.identity(), num_tasks, jax.random.key(0))
    for name in names:
        aggregator = methods.AGGREGATORS[name](setting)
        calls[name] = _updating(aggregator, gradients, params, losses)
    calls |= _of_torchjd(names, num_tasks, gradients)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(num_rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "method": name,
            "num_tasks": num_tasks,
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "device": jax.devices()[0].device_kind,
            "seconds": medians[name],
            "floor_seconds": medians["floor"],
            "over_floor": medians[name] / medians["floor"],
            "torchjd_seconds": medians.get(f"torchjd {name}"),
        }
        for name in names
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the results as Markdown."""
    lines = [
        "| method | N | parameters | ms | floor ms | over floor | TorchJD ms "
        "| TorchJD / ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        other = row["torchjd_seconds"]
        theirs = "- | -"
        if other is not None:
            theirs = f"{1e3 * other:.1f} | {other / row['seconds']:.1f}"
        lines.append(
            f"| {row['method']} | {row['num_tasks']} | {row['num_parameters']:,} "
            f"| {1e3 * row['seconds']:.1f} | {1e3 * row['floor_seconds']:.1f} "
            f"| {row['over_floor']:.2f} | {theirs} |"
        )
    return "\n".join(lines)


def _reading(gradients: Any) -> Callable[[], Any]:
    read = jax.jit(lambda tree: sum(leaf.sum() for leaf in jax.tree.leaves(tree)))
    read(gradients).block_until_ready()
    return lambda: read(gradients).block_until_ready()


def _updating(
    tx: optax.GradientTransformation, gradients: Any, params: Any, losses: jax.Array
) -> Callable[[], Any]:
    tx = optax.with_extra_args_support(tx)
    update = jax.jit(
        lambda gradients, state: tx.update(
            gradients, state, params, task_losses=losses
        ),
        donate_argnums=1,
    )
    state = update(gradients, tx.init(params))[1]

    def call():
        nonlocal state
        updates, state = update(gradients, state)
        jax.block_until_ready((updates, state))

    return call


def _of_torchjd(
    names: Sequence[str], num_tasks: int, gradients: Any
) -> dict[str, Callable[[], Any]]:
    try:
        import torch
        from torchjd import aggregation
    except ImportError:
        return {}
    torch.set_num_threads(machine.num_cores())
    matrix = torch.tensor(
        np.concatenate(
            [np.reshape(leaf, (num_tasks, -1)) for leaf in jax.tree.leaves(gradients)],
            axis=1,
        )
    )
    calls: dict[str, Callable[[], Any]] = {
        f"torchjd {name}": functools.partial(
            TORCHJD[name](aggregation, num_tasks), matrix
        )
        for name in set(names) & set(TORCHJD)
    }
    for call in calls.values():
        call()
    return calls
