"""What the commands of experiments share: their flags, and carrying out the runs.

Importing it defines flags, which only these commands want.
"""

import pathlib
import re
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from mtl_jax.commands import _flags
from mtl_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; see configs/.")
DIRECTORY = flags.DEFINE_string(
    "directory", None, "Folder of the experiment.", required=True
)
METHODS = flags.DEFINE_list(
    "methods",
    ["single", "independent", "vanilla", "gradnorm", "pcgrad"],
    "Some of those of config.method.name; two_stage has the encoder resnet34.",
)
SHARD = flags.DEFINE_string(
    "shard", "0/1", "i/n: this machine's part of the runs, the i-th of n from 0 on."
)
REDO_DAMAGED = flags.DEFINE_bool(
    "redo_damaged", False, "Begin networks anew whose checkpoint cannot be read."
)
flags.mark_flag_as_required("config")


def carry_out(kind: str, plan: Callable[..., Sequence], *arguments: object) -> int:
    """Plans the runs of an experiment and carries out those of this machine.

    Args:
      kind: of the experiment.
      plan: makes the runs from the config, the methods and the arguments.
      *arguments: what distinguishes this kind of experiment.

    Returns:
      How many of the runs other processes are at; they may not be finished.
    """
    from mtl_jax import methods
    from mtl_jax.experiments import execution
    from mtl_jax.experiments import plan as plans

    _flags.check_list(METHODS, methods.METHODS)
    config = CONFIG.value
    index, count = _shard()
    runs = plans.share(plan(config, METHODS.value, *arguments), index, count)
    directory = pathlib.Path(DIRECTORY.value)
    elsewhere = execution.execute(
        directory,
        kind,
        config,
        runs,
        redo_damaged=REDO_DAMAGED.value,
    )
    if elsewhere:
        print(f"{elsewhere} of {len(runs)} runs are other processes'.")
    print(directory / "results.csv")
    return elsewhere


def _shard() -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", SHARD.value)
    if not match:
        raise UserError(f"--shard={SHARD.value} is not of the form i/n, such as 0/4.")
    return int(match[1]), int(match[2])
