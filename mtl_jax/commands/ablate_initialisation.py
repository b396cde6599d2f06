"""Trains from initialisations that differ in part: --config=FILE --directory=DIR.

Trains a network for each part that begins by He's rule instead of PyTorch's, and each
seed; see mtl_jax/experiments/initialisation.py. Started again it goes on.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from mtl_jax.commands import _flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; see configs/.")
DIRECTORY = flags.DEFINE_string("directory", None, "Folder of the runs.", required=True)
VARIANTS = flags.DEFINE_list(
    "variants",
    ["none", "heads", "trunk", "biases", "kernels", "all"],
    "Parts that begin by He's rule.",
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each.", lower_bound=1)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains what is missing and prints a table."""
    from mtl_jax import configuration
    from mtl_jax.errors import UserError
    from mtl_jax.experiments import initialisation

    _flags.check_list(VARIANTS, initialisation.VARIANTS)
    if configuration.part_configs(CONFIG.value):
        raise UserError(
            f"config.method.name is {CONFIG.value.method.name!r}, which trains several "
            "networks; choose a method of one."
        )
    rows = initialisation.ablate(
        CONFIG.value, pathlib.Path(DIRECTORY.value), VARIANTS.value, SEEDS.value
    )
    print(initialisation.table(rows))
