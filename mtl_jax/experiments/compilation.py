"""Compiles training steps for TPUs that are not there, and reads the programs.

It needs the `libtpu` of the extra `tpu`, and no TPU. Nothing is run: memory is
what the compiler reserves, and bytes and operations are counted in the program.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from mtl_jax import tasks as tasks_lib
from mtl_jax.errors import UserError
from mtl_jax.experiments import benchmark
from mtl_jax.models import MultiTaskUNet
from mtl_jax.training import parallel
from mtl_jax.training import step as steps

# libtpu looks for the TPU of a cloud machine unless these say what there is.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    # One process may use a TPU, but several may compile.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4}
_BYTES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8}


def devices(topology: str) -> list[jax.Device]:
    """Returns the compile-only devices of a topology, such as v5e:2x2.

    A device is a chip, or one of its cores where libtpu tells them apart.

    Raises:
      UserError: if libtpu is missing, or does not know the topology.
    """
    # A TPU that is there stays free for others.
    jax.config.update("jax_platforms", "cpu")
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    try:
        import libtpu  # noqa: F401  # pyrefly: ignore
    except ModuleNotFoundError as error:
        raise UserError("--target=tpu needs libtpu; install mtl_jax[tpu].") from error
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"--target names {topology!r}, for which libtpu cannot compile "
            f"({reason}); name one such as tpu:v5e:2x2."
        ) from error
    return list(found.devices)


@dataclasses.dataclass(frozen=True)
class AllReduces:
    """The all-reduces that one step executes on a device.

    Attributes:
      count: how many, those of a loop once for each of its rounds, of the larger one
        where there is a choice.
      num_bytes: what they reduce, likewise.
      num_async: how many have a start and an end, between which the device computes.
    """

    count: int = 0
    num_bytes: int = 0
    num_async: int = 0

    def __add__(self, other: "AllReduces") -> "AllReduces":
        return AllReduces(
            self.count + other.count,
            self.num_bytes + other.num_bytes,
            self.num_async + other.num_async,
        )

    def __mul__(self, times: int) -> "AllReduces":
        return AllReduces(
            self.count * times, self.num_bytes * times, self.num_async * times
        )


def compile_step(
    setting: benchmark.Setting, method: str, targets: Sequence[jax.Device]
) -> dict[str, Any]:
    """Compiles the mapped step of a method.

    Args:
      setting: network and batch; its `batch_size` is that of one device.
      method: a name from `benchmark.METHODS`, except `independent_unrolled`, which is
        for one device.
      targets: from `devices`.

    Returns:
      The setting, `method`, `target`, `devices`, `parameters`, `compile_seconds`, and
      of one device: `argument_bytes` and `temporary_bytes` in HBM, `formula_flops` of
      the passes' convolutions and products, `program_flops` and `program_bytes` as XLA
      counts them (a loop's body once), and `all_reduces`.
    """
    model = MultiTaskUNet(
        encoder=setting.encoder,
        width=setting.width,
        dtype=jnp.dtype(setting.dtype),
        axis_name=parallel.AXIS,
    )
    tasks = tasks_lib.build()
    batch = benchmark.random_batch(setting.batch_size, setting.image_size)
    step, optimizer = benchmark.METHODS[method].create(model, tasks, parallel.AXIS)
    state = jax.eval_shape(
        lambda: steps.create_train_state(model, optimizer, jax.random.key(0))
    )
    state, mapped = (
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((len(targets), *x.shape), x.dtype), tree
        )
        for tree in (state, batch)
    )
    params = jax.tree.leaves(state.params)
    start = time.perf_counter()
    compiled = parallel.map_step(step, targets).lower(state, mapped).compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    floor = benchmark.METHODS[method].floor
    return {
        "method": method,
        **dataclasses.asdict(setting),
        "target": targets[0].device_kind,
        "devices": len(targets),
        "parameters": sum(math.prod(x.shape[1:]) for x in params),
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "formula_flops": floor(*benchmark.forward_flops(model, tasks, batch["image"])),
        "program_flops": cost["flops"],
        "program_bytes": cost["bytes accessed"],
        "all_reduces": dataclasses.asdict(all_reduces(compiled.as_text())),
    }


def all_reduces(program: str) -> AllReduces:
    """Counts the all-reduces that a compiled program (HLO text) executes."""
    parts: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif name:
            parts[name].append(line)

    def count(part: str) -> AllReduces:
        total = AllReduces()
        for line in parts.get(part, ()):
            if found := re.search(r"= (.*?) all-reduce(-start)?\(", line):
                total += AllReduces(1, _num_bytes(found[1]), int(bool(found[2])))
            elif body := re.search(r" while\(.*body=%?([\w.-]+)", line):
                rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                total += count(body[1]) * (int(rounds[1]) if rounds else 1)
            elif choice := re.search(r"branch_computations=\{(.*?)\}", line):
                branches = [count(b.strip(" %")) for b in choice[1].split(",")]
                total += max(branches, key=lambda branch: branch.num_bytes)
            elif called := re.search(r" (?:fusion|call)\(.*calls=%?([\w.-]+)", line):
                total += count(called[1])
        return total

    return count(entry)


def _num_bytes(shapes: str) -> int:
    return sum(
        _BYTES.get(dtype, 0) * math.prod(int(n) for n in sides.split(",") if n)
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Formats the results of `compile_step` as Markdown."""
    lines = [
        "| method | pixels | a device | dtype | target | devices | compile s "
        "| arguments GB | temporary GB | TFLOP (formula) | TFLOP (program) | GB moved "
        "| all-reduces (overlapped) | all-reduced MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        reduced = row["all_reduces"]
        lines.append(
            f"| {row['method']} | {row['image_size']} | {row['batch_size']} "
            f"| {row['dtype']} | {row['target']} | {row['devices']} "
            f"| {row['compile_seconds']:.0f} | {row['argument_bytes'] / 1e9:.2f} "
            f"| {row['temporary_bytes'] / 1e9:.2f} | {row['formula_flops'] / 1e12:.2f} "
            f"| {row['program_flops'] / 1e12:.2f} | {row['program_bytes'] / 1e9:.1f} "
            f"| {reduced['count']} ({reduced['num_async']}) "
            f"| {reduced['num_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)
