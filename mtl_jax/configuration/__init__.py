"""Checks configs, and builds the objects that they describe."""

from mtl_jax.configuration.checks import check, check_image_size
from mtl_jax.configuration.experiment import Experiment, build
from mtl_jax.configuration.parts import part_configs
from mtl_jax.configuration.text import differences, flatten, from_json, to_json
from mtl_jax.configuration.values import EXECUTION, OPTIMIZERS, STAGES, Config

__all__ = [
    "EXECUTION",
    "OPTIMIZERS",
    "STAGES",
    "Config",
    "Experiment",
    "build",
    "check",
    "check_image_size",
    "differences",
    "flatten",
    "from_json",
    "part_configs",
    "to_json",
]
