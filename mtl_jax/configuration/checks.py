"""Checks the values of a config. A wrong value raises an error of one sentence."""

import math
from collections.abc import Collection
from typing import Any, get_args

from mtl_jax import losses, methods, metrics, tasks
from mtl_jax.configuration import defaults
from mtl_jax.configuration.parts import part_configs
from mtl_jax.configuration.text import flatten
from mtl_jax.configuration.values import (
    BATCHES,
    DTYPES,
    HAVE_MU,
    MEMORIES,
    NORMALIZE_INPUT,
    ON_NONFINITE,
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
    "data.batches": BATCHES,
    "data.folds": folds.KINDS,
    "data.memory": MEMORIES,
    "data.pixel_origin": get_args(geometry.PixelOrigin),
    "model.encoder": ENCODERS,
    "model.norm": layers.NORMS,
    "model.init": layers.INITS,
    "model.dtype": DTYPES,
    "model.normalize_input": NORMALIZE_INPUT,
    "on_nonfinite": ON_NONFINITE,
    "view.kind": views.KINDS,
    "loss.fovea_reduction": get_args(losses.Reduction),
    "loss.fovea_peak": get_args(losses.Peak),
    "optimizer.name": OPTIMIZERS,
    "optimizer.mu_dtype": DTYPES,
    "optimizer.schedule": SCHEDULES,
    "evaluation.connectivity": get_args(postprocess.Connectivity),
    "evaluation.empty": get_args(postprocess.Empty),
    "evaluation.vcdr": get_args(postprocess.Vcdr),
    "evaluation.cup": get_args(postprocess.Cup),
    "evaluation.point": get_args(postprocess.Point),
}
_POSITIVE = (
    "accumulate",
    "model.width",
    "loss.fovea_sigma",
    "optimizer.learning_rate",
    "batch_size",
    "steps_per_dispatch",
    "num_epochs",
    "validate_every",
    "evaluation.vcdr_C",
)
# Lowest and highest value of each field.
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "data.num_folds": (2, 1e6),
    "data.fold_seed": (0, 2**32 - 1),
    "loss.focal_gamma": (0, 100),
    "interference_every": (0, math.inf),
    "checkpoint_every": (0, math.inf),
    "patience": (0, math.inf),
    "view.margin": (1, 100),
    "view.jitter": (0, 1),
    "view.zoom": (1, 100),
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
_TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a sequence",
}
_FRACTIONS = ("model.dropout", "model.norm_momentum")


def check(config: Config, *, is_part: bool = False) -> None:
    """Checks that the values of a config are possible and fit together.

    Args:
      config: config of a run.
      is_part: whether the run is a part of another, see `part_configs`.

    Raises:
      UserError: if a value is wrong. The message names the field and possible values.
    """
    _check_fields(config)
    values = flatten(config)
    _check_tasks(config)
    _check_choice("method.name", config.method.name, methods.METHODS)
    choices, ranges = {**_CHOICES, "evaluation.score": scores()}, dict(_RANGES)
    for name, field in methods.fields().items():
        if field.choices:
            choices[f"method.{name}"] = field.choices
        elif isinstance(field.default, int | float):
            ranges[f"method.{name}"] = field.low, field.high
    for field, possible in choices.items():
        _check_choice(field, values[field], possible)
    for field in _POSITIVE:
        if not 0 < values[field] < math.inf:
            raise UserError(f"config.{field} is {values[field]}; it must be positive.")
    for field, (low, high) in ranges.items():
        if not low <= values[field] <= high:
            # All digits of 1000000, but 1e-12.
            possible = f"lie between {low:.15g} and {high:.15g}"
            if high == math.inf:
                possible = f"be at least {low:.15g}"
            raise UserError(f"config.{field} is {values[field]}; it must {possible}.")
    for field in _FRACTIONS:
        if not 0 <= values[field] < 1:
            raise UserError(
                f"config.{field} is {values[field]}; it must be at least 0 and less "
                "than 1."
            )
    _check_together(config)
    # A part has fewer tasks, and its method no preferences.
    if not is_part:
        _check_preferences(config)
    if config.view.kind == "crop" and not is_part:
        raise UserError(
            "config.view.kind is 'crop', but no other network finds the disc; set "
            "config.method.name to 'two_stage', whose first network finds it."
        )
    for part in part_configs(config).values():
        check(part, is_part=True)


def _check_tasks(config: Config) -> None:
    for name in config.tasks:
        _check_choice("tasks", name, tasks.TASKS)
    if not config.tasks or len(set(config.tasks)) < len(config.tasks):
        raise UserError(
            f"config.tasks is {tuple(config.tasks)}; name at least one task, and each "
            "only once."
        )


def _check_together(config: Config) -> None:
    """Checks values that depend on other fields."""
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
    if config.optimizer.mu_dtype != "float32" and config.optimizer.name not in HAVE_MU:
        raise UserError(
            f"config.optimizer.mu_dtype is {config.optimizer.mu_dtype!r}, but "
            f"{config.optimizer.name} keeps no first moment; choose from "
            f"{', '.join(HAVE_MU)}, or set it to 'float32'."
        )
    groups = config.method.num_groups
    if config.method.name == "random_grouping" and not 1 <= groups <= len(config.tasks):
        raise UserError(
            f"config.method.num_groups is {groups}; it must be from 1 to the number of "
            f"tasks, {len(config.tasks)}."
        )
    fewest = methods.METHODS[config.method.name].fewest_tasks(config.method)
    if len(config.tasks) < fewest:
        raise UserError(
            f"config.tasks has {len(config.tasks)} tasks; with these fields of "
            f"config.method, the method {config.method.name} needs at least {fewest}."
        )


def _check_preferences(config: Config) -> None:
    given, n = config.method.preferences, len(config.tasks)
    is_positive = [type(x) in (int, float) and 0 < x < math.inf for x in given]
    if given and not (len(given) == n and all(is_positive)):
        raise UserError(
            f"config.method.preferences is {tuple(given)}; give a positive number for "
            f"each of the {n} tasks, or () for equal ones."
        )


def _check_views(config: Config) -> None:
    is_two_stage = config.method.name == "two_stage"
    if is_two_stage and "disc" not in config.tasks:
        raise UserError(
            f"config.tasks is {tuple(config.tasks)}, but the first network of the "
            "method two_stage looks for the disc; add 'disc'."
        )
    if is_two_stage and config.view.kind:
        raise UserError(
            f"config.view.kind is {config.view.kind!r}, but the method two_stage sets "
            "it itself; leave it empty."
        )
    if config.view.zoom > 1 and not (is_two_stage or config.view.kind):
        raise UserError(
            f"config.view.zoom is {config.view.zoom:g}, but only a network that sees "
            "whole images has close-ups; set config.view.kind to 'whole'."
        )
    if is_two_stage or config.view.kind:
        check_image_size(config, config.view.size, "config.view.size is")


def _check_points(config: Config) -> None:
    """Refuses to turn or move images if their foveas would not be right then."""
    if not any("fovea" in task.labels for task in tasks.build(config.tasks)):
        return
    leaving = {
        f"augmentation.{name}": config.augmentation[name]
        for name in ("rotation", "scale", "shift")
    } | {"view.zoom": config.view.zoom > 1}
    if config.loss.fovea_peak == "pixel" and any(leaving.values()):
        first = next(name for name, is_set in leaving.items() if is_set)
        raise UserError(
            "config.loss.fovea_peak is 'pixel', which has no map for a fovea outside "
            f"the image, and config.{first} moves some there; set one of the two to "
            "its default."
        )
    if config.data.pixel_origin == "centre":
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
            "config.data.pixel_origin is 'corner', which puts foveas up to half a "
            f"pixel off, and config.{moving[0]} would not move them with the image; "
            "set one of the two to its default."
        )


def check_image_size(config: Config, size: int, where: str) -> None:
    """Checks that the encoder can halve images of a size as often as it must.

    Args:
      config: config of the run.
      size: pixels a side of what the network sees.
      where: beginning of the message, such as "config.view.size is".

    Raises:
      UserError: if the size does not fit. The message names the sizes that do.
    """
    stride = ENCODERS[config.model.encoder].stride
    if size < 32 or size % stride:
        raise UserError(
            f"{where} {size} pixels, which does not fit the encoder "
            f"{config.model.encoder}; choose a multiple of {stride}, at least 32."
        )


def _check_fields(config: Config) -> None:
    """Checks that a config has the fields of `configs/default.py`, and their types."""
    theirs, ours = flatten(config), flatten(defaults.get_config())
    for fields, what in (
        (theirs.keys() - ours.keys(), "unknown"),
        (ours.keys() - theirs.keys(), "missing"),
    ):
        if fields:
            raise UserError(
                f"config.{min(fields)} is {what}; configs/default.py lists all fields."
            )
    for field, default in ours.items():
        # A whole number is a number, but True is not.
        possible = (int, float) if type(default) is float else (type(default),)
        if type(theirs[field]) not in possible:
            raise UserError(
                f"config.{field} is {theirs[field]!r}; it must be "
                f"{_TYPES[type(default)]}."
            )


def _check_choice(field: str, value: Any, choices: Collection[Any]) -> None:
    # A list cannot be looked up in a dict.
    if value not in [*choices]:
        raise UserError(
            f"config.{field} has {value!r}; choose from "
            f"{', '.join(str(choice) or repr(choice) for choice in choices)}."
        )
