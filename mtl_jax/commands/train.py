"""Trains a network: --config=configs/FILE.py --workdir=DIR [--resume]."""

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
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains the network and prints the command that evaluates it."""
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
