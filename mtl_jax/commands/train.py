"""Trains a network: --config=configs/FILE.py --workdir=DIR [--resume]."""

import os
import pathlib

from absl import flags
from ml_collections import config_flags

from mtl_jax.commands import _program

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; see configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
RESUME = flags.DEFINE_bool("resume", False, "Continue from the last checkpoint.")
ACCEPT_OTHER_DATA = flags.DEFINE_bool(
    "accept_other_data", False, "Continue although the data set was built anew."
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes that SLURM or a TPU pod started."
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
    if DETERMINISTIC.value:
        # XLA reads it when JAX first looks for devices.
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true"
    from mtl_jax import workdirs
    from mtl_jax.training import parallel

    if DISTRIBUTED.value:
        parallel.connect_processes()
    workdirs.train(
        CONFIG.value,
        pathlib.Path(WORKDIR.value),
        resume=RESUME.value,
        accept_other_data=ACCEPT_OTHER_DATA.value,
    )
    _program.say(f"{WORKDIR.value}: now scripts/evaluate.py --workdir={WORKDIR.value}")
