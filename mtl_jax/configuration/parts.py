"""Makes the configs of the networks that a method trains one after the other."""

import copy
from collections.abc import Collection

from mtl_jax import metrics, tasks
from mtl_jax.configuration.values import STAGES, Config


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
    chosen = [tasks.TASKS[name] for name in config.tasks]
    # Points may lie anywhere on the whole image. What is to be seen in detail, and the
    # diagnosis that hangs on it, is in the crop around the disc.
    seen = {
        "whole": [t for t in chosen if t.name == "disc" or t.kind == "localisation"],
        "crop": [t for t in chosen if t.kind != "localisation"],
    }
    configs = {}
    for stage in STAGES:
        one = configs[stage] = copy.deepcopy(config)
        one.method.name = config.method.stage_method
        one.view.kind, one.tasks = stage, tuple(task.name for task in seen[stage])
        _choose_score(one, one.tasks)
    return configs


def _single_task_configs(config: Config) -> dict[str, Config]:
    configs = {}
    for name in tasks.TASKS:
        if name in config.tasks:
            one = configs[name] = copy.deepcopy(config)
            one.tasks = (name,)
            one.method.name = "independent"
            _choose_score(one, one.tasks)
    return configs


def _choose_score(config: Config, names: Collection[str]) -> None:
    """Scores a network of these tasks by their mean, unless its score is of one."""
    score = metrics.every().get(config.evaluation.score)
    if score is None:
        return
    is_diagnosis = metrics.DIAGNOSIS in score.columns
    if (score.task or (is_diagnosis and metrics.DIAGNOSIS)) not in names:
        config.evaluation.score = "mean"
