"""Trains a network: --config=configs/FILE.py --workdir=DIR [--resume]."""

import contextlib
import os
import pathlib

from absl import flags
from ml_collections import config_flags

from mtl_jax.commands import _program
from mtl_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; see configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
RESUME = flags.DEFINE_bool("resume", False, "Continue from the last checkpoint.")
ACCEPT_OTHER_DATA = flags.DEFINE_bool(
    "accept_other_data", False, "Continue although the data set was built anew."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes that SLURM or a TPU pod started."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT at which the first of several processes listens; with --num_processes "
    "and --process_id, instead of --distributed.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Number of the processes that meet at --coordinator.",
    lower_bound=1,
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process among them, from 0."
)
DETERMINISTIC = flags.DEFINE_bool(
    "deterministic",
    False,
    "Let two runs on one kind of GPU have the same bits, as on CPUs. It leaves out "
    "faster operations; at what cost in time has not been measured.",
)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains the network and prints the command that evaluates it."""
    _check_processes()
    if DETERMINISTIC.value:
        # XLA reads it when JAX first looks for devices.
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true"
    from mtl_jax import workdirs
    from mtl_jax.training import parallel

    processes = contextlib.nullcontext()
    if DISTRIBUTED.value or COORDINATOR.value:
        processes = parallel.connected_processes(
            COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
        )
    with processes:
        workdirs.train(
            CONFIG.value,
            pathlib.Path(WORKDIR.value),
            resume=RESUME.value,
            accept_other_data=ACCEPT_OTHER_DATA.value,
        )
    _program.say(f"{WORKDIR.value}: now scripts/evaluate.py --workdir={WORKDIR.value}")


def _check_processes() -> None:
    """Refuses flags of several processes that do not fit each other."""
    address, number, index = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    if address is None and number is None and index is None:
        return
    if address is None or number is None or index is None:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together; give all "
            "three of them, or none."
        )
    if DISTRIBUTED.value:
        raise UserError(
            "--distributed and --coordinator both tell how processes meet; leave out "
            "one of them."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator is {address!r}; give the host and a free port of "
            "the first process, such as 10.0.0.1:1234."
        )
    if not 0 <= index < number:
        raise UserError(
            f"--process_id is {index}; number the {number} processes of "
            f"--num_processes from 0 to {number - 1}."
        )
