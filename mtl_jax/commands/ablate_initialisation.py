"""Compares rules of initialisation: --config=FILE --directory=DIR.

Trains a network for each variant and seed. A variant names the part that starts from
He's rule instead of PyTorch's; see mtl_jax/experiments/initialisation.py. If repeated,
the command continues unfinished runs.
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
    "Parts of the network that start from He's rule.",
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each variant.", lower_bound=1)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains unfinished runs and prints a table of all."""
    from mtl_jax import configuration
    from mtl_jax.errors import UserError
    from mtl_jax.experiments import initialisation

    _flags.check_list(VARIANTS, initialisation.VARIANTS)
    if configuration.part_configs(CONFIG.value):
        raise UserError(
            f"config.method.name is {CONFIG.value.method.name!r}, which trains several "
            "networks; choose a method that trains one."
        )
    rows = initialisation.ablate(
        CONFIG.value, pathlib.Path(DIRECTORY.value), VARIANTS.value, SEEDS.value
    )
    print(initialisation.table(rows))
