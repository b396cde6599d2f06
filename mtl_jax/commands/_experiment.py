"""Defines the flags that the experiment commands share, and carries out their runs.

Importing this module defines the flags, so only these commands import it.
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
    "Methods to run, as in config.method.name, or all; two_stage always has encoder "
    "resnet34.",
)
SHARD = flags.DEFINE_string(
    "shard", "0/1", "i/n runs part i of n on this machine; i counts from 0."
)
REDO_DAMAGED = flags.DEFINE_bool(
    "redo_damaged", False, "Train a network anew if all its checkpoints are damaged."
)
flags.mark_flag_as_required("config")


def method_names() -> list[str]:
    """Reads --methods.

    Raises:
      UserError: if it names what is no method.
    """
    from mtl_jax import methods

    return _flags.all_or_some(METHODS, methods.METHODS)


def carry_out(kind: str, plan: Callable[..., Sequence], *arguments: object) -> int:
    """Plans the runs of an experiment and carries out those of this machine.

    Args:
      kind: kind of the experiment, such as `cross_validation`.
      plan: function that makes the runs from the config, the methods and `arguments`.
      *arguments: further arguments of `plan`.

    Returns:
      Number of runs that other processes are working on; they may be unfinished.
    """
    from mtl_jax.experiments import execution
    from mtl_jax.experiments import plan as plans

    config = CONFIG.value
    index, count = _shard()
    runs = plans.share(plan(config, method_names(), *arguments), index, count)
    directory = pathlib.Path(DIRECTORY.value)
    elsewhere = execution.execute(
        directory,
        kind,
        config,
        runs,
        redo_damaged=REDO_DAMAGED.value,
    )
    if elsewhere:
        print(f"Other processes are working on {elsewhere} of {len(runs)} runs.")
    print(directory / "results.csv")
    return elsewhere


def _shard() -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", SHARD.value)
    if not match:
        raise UserError(f"--shard={SHARD.value} must have the form i/n, such as 0/4.")
    return int(match[1]), int(match[2])
