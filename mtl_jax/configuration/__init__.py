"""Configs: checking them, and making the objects that they describe."""

from mtl_jax.configuration.checks import check, check_image_size
from mtl_jax.configuration.create import (
    create_augmentation,
    create_fold,
    create_model,
    create_optimizer,
    create_post_processing,
    create_tasks,
    create_view,
    method_key,
)
from mtl_jax.configuration.parts import part_configs
from mtl_jax.configuration.text import differences, from_json, stored, to_json
from mtl_jax.configuration.values import METHODS, OPTIMIZERS, STAGES, Config

__all__ = [
    "METHODS",
    "OPTIMIZERS",
    "STAGES",
    "Config",
    "check",
    "check_image_size",
    "create_augmentation",
    "create_fold",
    "create_model",
    "create_optimizer",
    "create_post_processing",
    "create_tasks",
    "create_view",
    "differences",
    "from_json",
    "method_key",
    "part_configs",
    "stored",
    "to_json",
]
