"""The one place that knows of devices: replicas of the state, shares of the batch.

`jax.pmap` maps the step over the devices of all processes. Each process holds one copy
of the state per local device and feeds its own share of every batch.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.tasks import Batch

AXIS = "batch"

# A batch in host memory.
HostBatch = Mapping[str, np.ndarray]

T = TypeVar("T")
R = TypeVar("R")


def connect_processes() -> None:
    """Joins the processes that a cluster started for this run, one for each host.

    They learn of each other from SLURM, Open MPI, Kubernetes or the TPU's host; to be
    called before anything else of JAX.

    Raises:
      UserError: if nothing is known of other processes.
    """
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes of this run cannot find each other ({error}); leave out "
            "--distributed, or start them by SLURM, Open MPI or on a TPU pod."
        ) from error


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


def map_step(step: Callable[[T, Batch], R]) -> Callable[[T, HostBatch], R]:
    """Maps `step(state, batch)` over the devices; the state given in is consumed."""
    return jax.pmap(step, axis_name=AXIS, donate_argnums=0)


def map_evaluation(function: Callable[[T, Batch], R]) -> Callable[[T, HostBatch], R]:
    """Maps `function(variables, batch)` over the devices."""
    return jax.pmap(function, axis_name=AXIS)


def replicate(tree: Any) -> Any:
    """Puts a copy on every local device, on a new leading axis."""
    # Named as in `map_step`: a state on another mesh would compile the step anew.
    copy = jax.pmap(lambda _, x: x, axis_name=AXIS, in_axes=(0, None))
    return copy(np.arange(jax.local_device_count()), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy, in host memory (random keys stay as they are)."""

    def first(x):
        copy = x.addressable_data(0)[0]
        is_key = jax.dtypes.issubdtype(copy.dtype, jax.dtypes.prng_key)
        return copy if is_key else np.asarray(copy)

    return jax.tree.map(first, tree)


def shard(batch: HostBatch) -> HostBatch:
    """Splits the leading axis into [local devices, share]."""
    devices = jax.local_device_count()
    return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}


def gather(tree: Any) -> Any:
    """Undoes `shard` on what the local devices computed, in host memory."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
