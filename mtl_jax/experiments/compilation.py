"""Compiles training steps for devices that are not there, and reads the programs.

Nothing is run: memory is what the compiler reserves, and bytes and operations are
counted in the program. TPUs need the `libtpu` of the extra `tpu`.
"""

import contextlib
import dataclasses
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from mtl_jax import tasks as tasks_lib
from mtl_jax.errors import UserError
from mtl_jax.experiments import arithmetic, benchmark, benchmark_table, hlo
from mtl_jax.training import parallel
from mtl_jax.training import step as steps

# libtpu looks for the TPU of a cloud machine unless these say what there is.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    # One process may use a TPU, but several may compile.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Warnings, to be printed.
    "TPU_STDERR_LOG_LEVEL": "1",
}


class Chip(NamedTuple):
    """Published figures of a chip.

    Attributes:
      flops: additions and multiplications a second, of bfloat16 products. Products of
        float32 are made of bfloat16 ones by default, at the same rate.
      link_bytes: bytes a second that it sends to its neighbours, by all links.
    """

    flops: float
    link_bytes: float


# From docs.cloud.google.com/tpu/docs/{v5e,v5p-training,v6e}, by JAX's name of the
# device. Published link rates are those of both directions together.
CHIPS = {
    "TPU v5 lite": Chip(197e12, 400e9 / 2),
    "TPU v5": Chip(459e12, 1200e9 / 2),
    "TPU v6 lite": Chip(918e12, 800e9 / 2),
}


def devices(target: str) -> list[jax.Device]:
    """Returns the devices of a target: cpu, or tpu and a topology, as tpu:v5e:2x2.

    A device is a chip, or one of its cores where libtpu tells them apart.

    Raises:
      UserError: if there is no such target, or libtpu is missing.
    """
    # A TPU that is there stays free for others.
    jax.config.update("jax_platforms", "cpu")
    if target == "cpu":
        return jax.devices()[:1]
    platform, _, topology = target.partition(":")
    if platform != "tpu" or not topology:
        raise UserError(
            f"--target is {target!r}; give cpu, or tpu and a topology, such as "
            "tpu:v5e:2x2."
        )
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
      The setting, `method`, `target`, `devices`, `parameters`, `compile_seconds`, the
      compiler's `complaints`, and of one device: `argument_bytes`, `temporary_bytes`
      and `memory_bytes`, which are all that it needs, `formula_flops` of the passes'
      convolutions and products, `xla_flops` (see `hlo.flops`), `moved_bytes` as XLA
      counts them (a loop's body once), and `all_reduces`. `compute_seconds` and
      `all_reduce_seconds` are what `CHIPS` gives at best, see `least_seconds`.
    """
    tasks = tasks_lib.build()
    batch = benchmark.random_batch(setting.batch_size, setting.image_size)
    model = setting.model(parallel.AXIS)
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
    with _complaints() as complaints:
        compiled = parallel.map_step(step, targets).lower(state, mapped).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    floor = benchmark.METHODS[method].floor
    flops = floor(*arithmetic.forward_flops(model, tasks, batch["image"]))
    reduced = hlo.all_reduces(compiled.as_text())
    compute_seconds, all_reduce_seconds = least_seconds(
        flops, reduced.num_bytes, len(targets), targets[0].device_kind
    )
    return {
        "method": method,
        **dataclasses.asdict(setting),
        "target": targets[0].device_kind,
        "devices": len(targets),
        "parameters": sum(math.prod(x.shape[1:]) for x in params),
        "compile_seconds": seconds,
        "complaints": complaints,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "memory_bytes": hlo.memory_bytes(compiled),
        "formula_flops": flops,
        "xla_flops": hlo.flops(compiled),
        "moved_bytes": compiled.cost_analysis()["bytes accessed"],
        "all_reduces": dataclasses.asdict(reduced),
        "compute_seconds": compute_seconds,
        "all_reduce_seconds": all_reduce_seconds,
    }


def least_seconds(
    flops: float, num_bytes: float, num_devices: int, kind: str
) -> tuple[float | None, float | None]:
    """Estimates from `CHIPS` how long a step computes and reduces at least.

    A device sends (n - 1) / n of what is reduced, and as much again to tell the sum.
    All of its links are busy, as on a torus; the latency of small all-reduces is left
    out.

    Args:
      flops: arithmetic of a device.
      num_bytes: what its program reduces.
      num_devices: n.
      kind: JAX's name of the device.

    Returns:
      Seconds of both, None for a kind that is not in `CHIPS`.
    """
    if kind not in CHIPS:
        return None, None
    chip = CHIPS[kind]
    sent = 2 * (num_devices - 1) / num_devices * num_bytes
    return flops / chip.flops, sent / chip.link_bytes


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects what JAX warns of, and what XLA writes to stderr."""
    found: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            found += [str(warning.message) for warning in told]
            found += _by_place(file.read().decode(errors="replace"))


def _by_place(log: str) -> list[str]:
    """The first message from each line of XLA's program, and how many there are."""
    messages: dict[str, list[str]] = {"stderr": []}
    place = "stderr"
    for line in log.splitlines():
        if head := re.match(r"[IWEF]\d{4} \S+ +\d+ ([\w.]+:\d+)\] ?(.*)", line):
            place = head[1]
            messages.setdefault(place, []).append(head[2].strip(" *"))
        elif text := line.strip(" *"):
            if messages[place]:
                messages[place][-1] = f"{messages[place][-1]} {text}".strip()
            else:
                messages[place].append(text)
    return [
        f"{place}, {len(said)} times: {said[0]}"
        for place, said in messages.items()
        if said
    ]


_COLUMNS = {
    "compile s": lambda row: f"{row['compile_seconds']:.0f}",
    "arguments GB": lambda row: f"{row['argument_bytes'] / 1e9:.2f}",
    "temporary GB": lambda row: f"{row['temporary_bytes'] / 1e9:.2f}",
    "all GB": lambda row: f"{row['memory_bytes'] / 1e9:.2f}",
    "TFLOP": lambda row: f"{row['formula_flops'] / 1e12:.2f}",
    "XLA's": lambda row: benchmark_table.or_dash(row["xla_flops"], "{:.2f}", 1e12),
    "all-reduces (overlapped)": lambda row: "{count} ({num_async})".format(
        **row["all_reduces"]
    ),
    "MB": lambda row: f"{row['all_reduces']['num_bytes'] / 1e6:.0f}",
    "compute ms": lambda row: benchmark_table.or_dash(
        row["compute_seconds"], "{:.1f}", 1e-3
    ),
    "all-reduce ms": lambda row: benchmark_table.or_dash(
        row["all_reduce_seconds"], "{:.1f}", 1e-3
    ),
}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Formats the results of `compile_step` as Markdown, and the complaints."""
    lines = [benchmark_table.markdown(results, _COLUMNS)]
    for row in results:
        lines += [f"{row['method']}: {line}" for line in row["complaints"]]
    return "\n".join(lines)
