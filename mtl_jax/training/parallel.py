"""The one place that knows of devices: replicas of the state, shares of the batch.

`jax.pmap` maps the step over the devices of all processes. Each process holds one copy
of the state per local device and feeds its own share of every batch.
"""

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.errors import Interrupted, UserError
from mtl_jax.tasks import Batch

AXIS = "batch"

# A process that is silent for so long is given up. The default of JAX is 100.
LOST_SECONDS = 30
# sysexits.h: the same command may succeed later.
LOST_CODE = os.EX_TEMPFAIL

# Failures of what carries values between processes, and of the barriers of a save.
_EXCHANGE = re.compile("Gloo|NCCL|CoordinationService")
# A compiled function raises the former as `ValueError`, too. So does TensorStore its
# own, with the name of a file, which may have such a word in it.
_EXCHANGE_FIRST = re.compile("[A-Z_]+: (Gloo|NCCL)")

_handlers: list[Any] = []

# A batch in host memory.
HostBatch = Mapping[str, np.ndarray]


@contextlib.contextmanager
def connected_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins the processes of this run, one for each host, for the rest of the process.

    To be entered before anything else of JAX. If another process of the run ends or
    cannot be reached, this one waits in vain for its share. It then ends as well,
    within `LOST_SECONDS` and some seconds, with a sentence and the code `LOST_CODE`.
    What the block was about to tidy stays as it is.

    Args:
      coordinator: HOST:PORT at which the first process listens. Without it, SLURM, Open
        MPI, Kubernetes or the TPU's host tell of the other processes.
      num_processes: number of all processes.
      process_id: number of this process, from 0.

    Raises:
      UserError: if the processes do not find each other.
    """
    before = _threads()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if coordinator else None,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=LOST_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        how = (
            "leave out --distributed, or start them by SLURM, Open MPI or on a TPU pod"
        )
        if coordinator:
            how = f"start all {num_processes}, and name a free port of the first's host"
        raise UserError(
            "The processes of this run cannot find each other "
            f"({_first_line(error)}); {how}."
        ) from error
    # By one of them JAX aborts this process when it has lost another.
    watching = _threads() - before
    lost = _Ending(f"{_lost('the message above says how')}\n", LOST_CODE)
    ending = None

    def ending_now() -> _Ending | None:
        return ending or (lost if threading.get_native_id() in watching else None)

    _end_on_abort(ending_now)
    try:
        yield
        # JAX is going to wait for the others, on this thread.
        ending = lost
    except Exception as error:
        if reason := _failed_exchange(error):
            print(_lost(reason), file=sys.stderr, flush=True)
            # An ordinary end would wait for the other processes.
            os._exit(LOST_CODE)
        # The others still compute, so JAX is going to abort this process at its end.
        ending = _Ending("", 1)
        raise
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Interrupted) else signal.SIGINT
        ending = _Ending("", 128 + number)
        raise


class _Ending(NamedTuple):
    """What a process prints and with which code it ends when JAX aborts it."""

    sentence: str
    code: int


def _threads() -> set[int]:
    """Numbers of all threads of this process; none on a system without /proc."""
    return {int(path.name) for path in pathlib.Path("/proc/self/task").glob("*")}


def _lost(reason: str) -> str:
    return (
        f"error: Another process of the {jax.process_count()} of this run has ended or "
        f"cannot be reached ({reason}); start all of them again with --resume."
    )


def _failed_exchange(error: BaseException | None) -> str | None:
    """Returns what failed between processes, if that is the cause of an error.

    A save that was under way fails by it, too, with an error of its own.
    """
    while error is not None:
        is_jaxs = isinstance(error, jax.errors.JaxRuntimeError)
        if (_EXCHANGE.search if is_jaxs else _EXCHANGE_FIRST.match)(str(error)):
            return _first_line(error)
        error = error.__cause__ or error.__context__
    return None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _end_on_abort(ending: Callable[[], _Ending | None]) -> None:
    """Replaces the end by SIGABRT, by which JAX ends a process that lost another.

    Where `ending` returns None, the process ends by the signal all the same.

    JAX's own callback for this cannot be written in Python (jaxlib 0.10.2 has no
    conversion of its argument). A handler of the module `signal` would wait for the
    main thread, which waits for the lost process.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(number: int) -> None:
        if (found := ending()) is None:
            register(number, None)
            os.kill(os.getpid(), number)
            return
        os.write(2, found.sentence.encode())
        os._exit(found.code)

    # C keeps the address alone.
    _handlers.append(end)
    register = ctypes.CDLL(None).signal
    register.argtypes, register.restype = (ctypes.c_int, ctypes.c_void_p), None
    register(signal.SIGABRT, ctypes.cast(end, ctypes.c_void_p))


def is_first_process() -> bool:
    """Whether this process writes what a run has only one of, such as its log."""
    return jax.process_index() == 0


def check_batch_size(batch_size: int, accumulate: int = 1) -> None:
    """Refuses a batch that cannot be shared equally.

    Raises:
      UserError: if the number of devices, times that of microbatches, does not divide
        `batch_size`.
    """
    devices = jax.device_count()
    shares, what = devices, f"{devices} devices"
    if accumulate > 1:
        shares, what = devices * accumulate, f"{accumulate} microbatches"
        what += f" of {devices} devices" if devices > 1 else ""
    if batch_size % shares:
        raise UserError(
            f"config.batch_size is {batch_size}, which {what} cannot share equally; "
            f"make it a multiple of {shares}."
        )


def map_step(
    step: Callable[..., Any], devices: Sequence[jax.Device] | None = None
) -> Any:
    """Maps `step(state, ...)` over the devices; the state given in is consumed.

    Args:
      step: with the axis `AXIS`.
      devices: all of this run by default, or those of a `--target` to compile for.

    Returns:
      `(state, ...)` of a leading device axis, which has `lower`, too.
    """
    return jax.pmap(step, axis_name=AXIS, donate_argnums=0, devices=devices)


def map_evaluation(function: Callable[..., Any]) -> Any:
    """Maps `function(variables, ...)` over the devices; it has `lower`, too."""
    return jax.pmap(function, axis_name=AXIS)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Puts a copy on each device, all local ones by default, on a new leading axis."""
    # Named as in `map_step`: a state on another mesh would compile the step anew.
    copy = jax.pmap(lambda _, x: x, axis_name=AXIS, in_axes=(0, None), devices=devices)
    return copy(np.arange(len(devices or jax.local_devices())), tree)


def place(arrays: HostBatch) -> Batch:
    """Copies arrays to every local device, on a new leading axis, as `replicate` does.

    Unlike `replicate`, it needs no second copy on a device meanwhile.
    """
    mesh = jax.sharding.Mesh(jax.local_devices(), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    return {
        key: jax.make_array_from_callback(
            (mesh.size, *values.shape),
            sharding,
            lambda _, values=values: values[np.newaxis],
        )
        for key, values in arrays.items()
    }


@jax.jit
def _without_axis(tree: Any) -> Any:
    """Drops the device axis of one device's copies, by one program for all of them."""
    return jax.tree.map(lambda x: jax.lax.squeeze(x, [0]), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy, in host memory (random keys stay as they are).

    Until it is there, the device holds a second copy.
    """

    def in_host_memory(copy):
        is_key = jax.dtypes.issubdtype(copy.dtype, jax.dtypes.prng_key)
        return copy if is_key else np.asarray(copy)

    first = _without_axis(jax.tree.map(lambda x: x.addressable_data(0), tree))
    return jax.tree.map(in_host_memory, first)


def shard(batch: HostBatch) -> HostBatch:
    """Splits the leading axis into [local devices, share]."""
    devices = jax.local_device_count()
    return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}


def gather(tree: Any) -> Any:
    """Undoes `shard` on what the local devices computed, in host memory."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
