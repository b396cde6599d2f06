"""A sentence for every value of a config that nothing can be made of."""

import json
import math
from collections.abc import Collection
from typing import Any, get_args

from mtl_jax import losses, methods, metrics, tasks
from mtl_jax.configuration import defaults
from mtl_jax.configuration.text import flatten, to_json
from mtl_jax.configuration.values import (
    DTYPES,
    NORMALIZE_INPUT,
    OPTIMIZERS,
    SCHEDULES,
    Config,
    scores,
)
from mtl_jax.data import folds, geometry
from mtl_jax.errors import UserError
from mtl_jax.inference import postprocess
from mtl_jax.models import layers
from mtl_jax.models.encoders import ENCODERS
from mtl_jax.training import views

_CHOICES = {
    "data.folds": folds.KINDS,
    "data.pixel_origin": get_args(geometry.PixelOrigin),
    "model.encoder": ENCODERS,
    "model.norm": layers.NORMS,
    "model.init": layers.INITS,
    "model.dtype": DTYPES,
    "model.normalize_input": NORMALIZE_INPUT,
    "view.kind": views.KINDS,
    "loss.fovea_reduction": get_args(losses.Reduction),
    "loss.fovea_peak": get_args(losses.Peak),
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "evaluation.connectivity": get_args(postprocess.Connectivity),
    "evaluation.empty": get_args(postprocess.Empty),
    "evaluation.vcdr": get_args(postprocess.Vcdr),
}
_POSITIVE = (
    "model.width",
    "loss.fovea_sigma",
    "optimizer.learning_rate",
    "batch_size",
    "num_epochs",
    "validate_every",
    "evaluation.vcdr_C",
)
# Lowest and highest value.
_RANGES = {
    "seed": (0, 2**32 - 1),
    "data.num_folds": (2, 1e6),
    "data.fold_seed": (0, 2**32 - 1),
    "loss.focal_gamma": (0, 100),
    "interference_every": (0, math.inf),
    "view.margin": (1, 100),
    "view.jitter": (0, 1),
    "optimizer.warmup_epochs": (0, 1e6),
    "optimizer.freeze_encoder_epochs": (0, 1e6),
    "optimizer.encoder_learning_rate_scale": (0, 1e3),
    "augmentation.rotation": (0, 180),
    "augmentation.scale": (0, 10),
    "augmentation.illumination": (0, 10),
    "augmentation.shift": (0, 1),
    "augmentation.brightness": (0, 1),
    "augmentation.contrast": (0, 1),
    "augmentation.colour": (0, 1),
}
_FRACTIONS = ("model.dropout", "model.norm_momentum")


def check(config: Config, *, is_part: bool = False) -> None:
    """Refuses a config with values that nothing can be made of.

    Args:
      config: of a run.
      is_part: whether the run is a part of another, see `part_configs`.

    Raises:
      UserError: naming the field, its value, and what it may be.
    """
    _check_fields(config)
    values = dict(flatten(json.loads(to_json(config))))
    _check_choice("method.name", config.method.name, methods.METHODS)
    choices, ranges = {**_CHOICES, "evaluation.score": scores()}, dict(_RANGES)
    for name, field in methods.fields().items():
        if field.choices:
            choices[f"method.{name}"] = field.choices
        elif not isinstance(field.default, str):
            ranges[f"method.{name}"] = field.low, field.high
    for field, possible in choices.items():
        _check_choice(field, values[field], possible)
    for field in _POSITIVE:
        if not 0 < values[field] < math.inf:
            raise UserError(f"config.{field} is {values[field]}; it must be positive.")
    for field, (low, high) in ranges.items():
        if not low <= values[field] <= high:
            raise UserError(
                f"config.{field} is {values[field]}; it must lie between {low} and "
                f"{high:g}."
            )
    for field in _FRACTIONS:
        if not 0 <= values[field] < 1:
            raise UserError(
                f"config.{field} is {values[field]}; it must be at least 0 and less "
                "than 1."
            )
    _check_tasks(config)
    _check_together(config)
    if config.view.kind == "disc" and not is_part:
        raise UserError(
            "config.view.kind is 'disc', which leaves it open who finds the disc; set "
            "config.method.name to 'two_stage', of which it is the second."
        )


def _check_tasks(config: Config) -> None:
    for name in config.tasks:
        _check_choice("tasks", name, tasks.TASKS)
    if not config.tasks or len(set(config.tasks)) < len(config.tasks):
        raise UserError(
            f"config.tasks is {tuple(config.tasks)}; name at least one task, and none "
            "twice."
        )


def _check_together(config: Config) -> None:
    """Refuses values that do not go with those of other fields."""
    _check_views(config)
    _check_points(config)
    fold_names = ("official", *map(str, range(config.data.num_folds)))
    _check_choice("data.fold", config.data.fold, fold_names)
    score = metrics.every().get(config.evaluation.score)
    if score and score.task and score.task not in config.tasks:
        raise UserError(
            f"config.evaluation.score is {score.name!r}, but {score.task} is "
            "not among config.tasks; choose mean or loss."
        )
    groups = config.method.num_groups
    if config.method.name == "random_grouping" and not 1 <= groups <= len(config.tasks):
        raise UserError(
            f"config.method.num_groups is {groups}; it must be from 1 to the number of "
            f"tasks, {len(config.tasks)}."
        )


def _check_views(config: Config) -> None:
    is_two_stage = config.method.name == "two_stage"
    if is_two_stage and set(config.tasks) != {"disc", "cup"}:
        raise UserError(
            f"config.tasks is {tuple(config.tasks)}, but the method two_stage is for "
            "the optic disc and cup; set it to ('disc', 'cup')."
        )
    if is_two_stage and config.evaluation.score == "auc":
        raise UserError(
            "config.evaluation.score is 'auc', but the method two_stage says nothing "
            "of glaucoma; choose mean, dice_disc, dice_cup or loss."
        )
    if is_two_stage and config.view.kind:
        raise UserError(
            f"config.view.kind is {config.view.kind!r}, but the method two_stage sets "
            "it by itself; leave it empty."
        )
    if is_two_stage or config.view.kind:
        check_image_size(config, config.view.size, "config.view.size is")


def _check_points(config: Config) -> None:
    """Refuses to turn or rescale images whose foveas are not where pixels are."""
    has_foveas = any("fovea" in task.labels for task in tasks.build(config.tasks))
    if config.data.pixel_origin == "centre" or not has_foveas:
        return
    moving = [
        f"augmentation.{name}"
        for name in ("flip_horizontal", "flip_vertical", "rotation", "scale")
        if config.augmentation[name]
    ]
    if config.view.kind:
        moving.append("view.kind")
    if moving:
        raise UserError(
            f"config.data.pixel_origin is 'corner', which puts foveas up to half a "
            f"pixel beside their place in the image, so that config.{moving[0]} would "
            "move them elsewhere than the image; set one of the two to its default."
        )


def check_image_size(config: Config, size: int, where: str) -> None:
    """Refuses a size of images that the encoder cannot halve as often as it does.

    Args:
      config: of the run.
      size: pixels a side of what the network sees.
      where: what has this size, with its verb.

    Raises:
      UserError: saying which sizes fit.
    """
    stride = ENCODERS[config.model.encoder].stride
    if size < 32 or size % stride:
        raise UserError(
            f"{where} {size} pixels, which does not fit the encoder "
            f"{config.model.encoder}; a multiple of {stride}, at least 32, does."
        )


def _check_fields(config: Config) -> None:
    """Refuses fields that `configs/default.py` does not have, and their absence."""
    theirs, ours = (
        {field for field, _ in flatten(json.loads(to_json(c)))}
        for c in (config, defaults.get_config())
    )
    for fields, what in ((theirs - ours, "unknown"), (ours - theirs, "missing")):
        if fields:
            raise UserError(
                f"config.{min(fields)} is {what}; configs/default.py lists all fields."
            )


def _check_choice(field: str, value: Any, choices: Collection[Any]) -> None:
    if value not in choices:
        raise UserError(
            f"config.{field} has {value!r}; choose from "
            f"{', '.join(str(choice) or repr(choice) for choice in choices)}."
        )
