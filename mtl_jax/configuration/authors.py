"""Follows the authors' program on REFUGE; docs/authors.md explains how.

It is a config file like those in `configs/`.
"""

from mtl_jax.configuration import defaults
from mtl_jax.configuration.values import Config


def follow(config: Config) -> None:
    """Changes a config to the conventions of the authors' program."""
    config.model.encoder = "vgg13"
    config.model.norm = "batch_no_average"
    config.data.folds = "shuffled"
    config.data.pixel_origin = "corner"
    config.loss.fovea_peak = "pixel"
    config.evaluation.score = "loss"
    config.evaluation.vcdr = "probabilities"
    config.evaluation.cup = "largest"
    config.evaluation.connectivity = 4
    config.evaluation.empty = "whole"


def get_config() -> Config:
    """Returns the config that `configs/refuge.py:authors` names."""
    config = defaults.get_config()
    config.data.dataset = "refuge/256px"
    follow(config)
    return config
