"""Runs that consist of several: their configs."""

import copy
from collections.abc import Collection

from mtl_jax import metrics, tasks
from mtl_jax.configuration.values import STAGES, Config


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
    stages = (("whole", ("disc",)), ("disc", ("disc", "cup")))
    for name, (kind, seen) in zip(STAGES, stages, strict=True):
        one = configs[name] = copy.deepcopy(config)
        one.method.name = "vanilla"
        one.view.kind, one.tasks = kind, seen
        _choose_score(one, seen)
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
    """Scores a network of these tasks by their mean, if not by one of them.

    Of a network of segmentation or localisation alone nobody wants the diagnosis.
    """
    score = metrics.every().get(config.evaluation.score)
    if score and (score.task or metrics.DIAGNOSIS) not in names:
        config.evaluation.score = "mean"
