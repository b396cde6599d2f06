"""Runs that consist of several: their configs."""

import copy

from mtl_jax import tasks
from mtl_jax.configuration.values import SCORED, STAGES, Config

# Of a network of segmentation or localisation alone nobody wants the diagnosis.
_SCORED = {**SCORED, "auc": "glaucoma"}


def part_configs(config: Config) -> dict[str, Config]:
    """The configs of the networks that a method trains apart, by their folders' names.

    They are those of single tasks for `single` and `STAGES` for `two_stage`; a method
    of one network has none.
    """
    if config.method.name == "single":
        return _single_task_configs(config)
    if config.method.name == "two_stage":
        return _stage_configs(config)
    return {}


def _stage_configs(config: Config) -> dict[str, Config]:
    configs = {}
    for stage, seen in zip(STAGES, (("disc",), ("disc", "cup")), strict=True):
        one = configs[stage] = copy.deepcopy(config)
        one.method.name = "vanilla"
        one.view.kind, one.tasks = stage, seen
        if _SCORED.get(one.evaluation.score, "disc") not in seen:
            one.evaluation.score = "mean"
    return configs


def _single_task_configs(config: Config) -> dict[str, Config]:
    configs = {}
    for name in tasks.NAMES:
        if name in config.tasks:
            one = configs[name] = copy.deepcopy(config)
            one.tasks = (name,)
            one.method.name = "independent"
            if _SCORED.get(one.evaluation.score, name) != name:
                one.evaluation.score = "mean"
    return configs
