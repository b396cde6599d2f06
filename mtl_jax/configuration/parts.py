"""Makes the configs of the networks that a method trains one after the other."""

import copy

from mtl_jax import tasks
from mtl_jax.configuration.values import SCORED, STAGES, Config

# The AUC does not score a network without the glaucoma task.
_SCORED = {**SCORED, "auc": "glaucoma"}


def part_configs(config: Config) -> dict[str, Config]:
    """Makes the config of each network that a method trains, by its folder's name.

    The networks are single tasks for `single`, and `STAGES` for `two_stage`. The result
    is empty for a method of one network.
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
