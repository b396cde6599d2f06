"""From a config to the objects it describes, with a sentence for every bad value."""

import copy
import json
import math
from collections.abc import Collection, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mtl_jax import losses, optim, tasks
from mtl_jax.data import folds
from mtl_jax.errors import UserError
from mtl_jax.models import MultiTaskUNet, layers
from mtl_jax.models.encoders import ENCODERS
from mtl_jax.training import views
from mtl_jax.training.augment import Augmentation
from mtl_jax.training.step import Augment

METHODS = (
    "independent",
    "alternating",
    "vanilla",
    "gradnorm",
    "pcgrad",
    "per_task",
    "random_grouping",
    "single",
    "two_stage",
)
# The networks of the method two_stage, in the order of their use.
STAGES = ("whole", "crop")
OPTIMIZERS = ("adam", "adamw", "lion", "rmsprop", "sgd")
SCHEDULES = ("constant", "cosine", "linear")
SCORES = ("mean", "auc", "dice_disc", "dice_cup", "fovea_error", "loss")
# The task that a score is of, where it is one task's.
_SCORED = {"dice_disc": "disc", "dice_cup": "cup", "fovea_error": "fovea"}
NORMALIZE_INPUT = ("auto", "on", "off")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Config = ml_collections.ConfigDict


_CHOICES = {
    "model.encoder": ENCODERS,
    "model.norm": layers.NORMS,
    "model.dtype": DTYPES,
    "model.normalize_input": NORMALIZE_INPUT,
    "view.kind": views.KINDS,
    "loss.fovea_reduction": get_args(losses.Reduction),
    "method.name": METHODS,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "evaluation.score": SCORES,
}
_POSITIVE = (
    "model.width",
    "loss.fovea_sigma",
    "optimizer.learning_rate",
    "batch_size",
    "num_epochs",
    "validate_every",
    "evaluation.vcdr_C",
    "method.gradnorm_learning_rate",
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
    "method.gradnorm_alpha": (0, 100),
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
    values = dict(_flatten(json.loads(to_json(config))))
    for field, choices in _CHOICES.items():
        _check_choice(field, values[field], choices)
    for field in _POSITIVE:
        if not 0 < values[field] < math.inf:
            raise UserError(f"config.{field} is {values[field]}; it must be positive.")
    for field, (low, high) in _RANGES.items():
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
        _check_choice("tasks", name, tasks.NAMES)
    if not config.tasks or len(set(config.tasks)) < len(config.tasks):
        raise UserError(
            f"config.tasks is {tuple(config.tasks)}; name at least one task, and none "
            "twice."
        )


def _check_together(config: Config) -> None:
    """Refuses values that do not go with those of other fields."""
    _check_views(config)
    fold_names = ("official", *map(str, range(config.data.num_folds)))
    _check_choice("data.fold", config.data.fold, fold_names)
    needed = _SCORED.get(config.evaluation.score)
    if needed and needed not in config.tasks:
        raise UserError(
            f"config.evaluation.score is {config.evaluation.score!r}, but {needed} is "
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
    from configs import default  # Not needed to use the package without its programs.

    theirs, ours = (
        {field for field, _ in _flatten(json.loads(to_json(c)))}
        for c in (config, default.get_config())
    )
    for fields, what in ((theirs - ours, "unknown"), (ours - theirs, "missing")):
        if fields:
            raise UserError(
                f"config.{min(fields)} is {what}; configs/default.py lists all fields."
            )


def _check_choice(field: str, value: Any, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(
            f"config.{field} has {value!r}; choose from "
            f"{', '.join(choice or repr(choice) for choice in choices)}."
        )


def create_fold(config: Config) -> folds.Fold | None:
    """How training and validation are divided; None for the data set's own splits."""
    data = config.data
    if data.fold == "official":
        return None
    return folds.Fold(int(data.fold), data.num_folds, data.fold_seed)


def create_tasks(config: Config) -> tuple[tasks.Task, ...]:
    """The tasks to be trained, in the method's order."""
    return tasks.build(
        config.tasks,
        focal_gamma=config.loss.focal_gamma,
        fovea_sigma=config.loss.fovea_sigma,
        fovea_reduction=config.loss.fovea_reduction,
    )


def create_model(config: Config, axis_name: str | None = None) -> MultiTaskUNet:
    """The network with a head for each of the config's tasks."""
    heads = create_tasks(config)
    normalize = config.model.normalize_input
    if normalize == "auto":
        normalize = "on" if config.model.pretrained else "off"
    return MultiTaskUNet(
        encoder=config.model.encoder,
        width=config.model.width,
        classification_heads=tuple(t.name for t in heads if not t.is_dense),
        dense_heads=tuple(t.name for t in heads if t.is_dense),
        norm=config.model.norm,
        norm_momentum=config.model.norm_momentum,
        dropout=config.model.dropout,
        normalize_input=normalize == "on",
        dtype=DTYPES[config.model.dtype],
        axis_name=axis_name,
    )


def create_optimizer(
    config: Config, steps_per_epoch: int
) -> optim.SequentialOptimizer | optax.GradientTransformation:
    """The method's optimizer.

    Schedules of the learning rate count the steps of a state of their own. The first
    epochs, in which the encoder may be frozen, are those of the training.
    """
    tx = getattr(optax, config.optimizer.name)(_schedule(config, steps_per_epoch))
    frozen = round(config.optimizer.freeze_encoder_epochs * steps_per_epoch)
    scale = config.optimizer.encoder_learning_rate_scale
    if not frozen and scale == 1:
        return _create_method(config, tx)

    def at_step(count):
        # After the optimizer, whose moving averages see the gradients all the same.
        encoder = optim.scale_where(
            lambda path: path.startswith("encoder/"),
            jnp.where(count < frozen, 0, scale),
        )
        return _create_method(config, optax.chain(tx, encoder))

    return optim.by_step(at_step)


def _create_method(
    config: Config, tx: optax.GradientTransformation
) -> optim.SequentialOptimizer | optax.GradientTransformation:
    """The way of combining the tasks' gradients that takes steps by `tx`."""
    method, num_tasks = config.method, len(config.tasks)
    # Not the key of the training step, which is split from the same seed.
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    deepest = f"encoder/{ENCODERS[config.model.encoder].deepest}/conv/kernel"
    create = {
        "independent": lambda: optim.independent(tx, num_tasks),
        "alternating": lambda: optim.alternating(tx),
        # One group of all tasks: one backward pass of the sum.
        "vanilla": lambda: optim.random_grouping(tx, 1, key),
        "random_grouping": lambda: optim.random_grouping(tx, method.num_groups, key),
        "per_task": lambda: optim.per_task(tx, num_tasks),
        "pcgrad": lambda: optax.chain(optim.pcgrad(key), tx),
        "gradnorm": lambda: optax.chain(
            optim.gradnorm(
                num_tasks,
                method.gradnorm_alpha,
                method.gradnorm_learning_rate,
                # The last layer that all tasks share.
                shared=lambda path: path == deepest,
            ),
            tx,
        ),
    }
    return create[method.name]()


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


def _schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    peak = config.optimizer.learning_rate
    warmup = round(config.optimizer.warmup_epochs * steps_per_epoch)
    steps = max(config.num_epochs * steps_per_epoch - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps),
        "linear": lambda: optax.linear_schedule(peak, 0.0, steps),
    }[config.optimizer.schedule]()
    if not warmup:
        return after
    # The first step already moves.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def create_view(config: Config) -> views.View | None:
    """What the network sees of an image; None if that is the image."""
    return views.View(**config.view) if config.view.kind else None


def create_augmentation(config: Config) -> Augment | None:
    """What becomes of the training images before the network sees them, or None."""
    view, augmentation = create_view(config), Augmentation(**config.augmentation)
    if view is None:
        return augmentation or None

    def augment(key, batch, index):
        view_key, key = jax.random.split(key)
        return augmentation(key, view(view_key, batch, index), index)

    return augment if augmentation else view


def to_json(config: Config) -> str:
    """A config as text; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """The config that `to_json` was given; tuples have become lists."""
    return ml_collections.ConfigDict(json.loads(text))


def stored(text: str) -> Config:
    """The config of a run, as its files hold it, for the code of today.

    Fields that `configs/default.py` has been given since have their default, which is
    what the code did before it had them.
    """
    from configs import default

    def complete(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
        merged = {**ours, **theirs}
        for key in ours.keys() & theirs.keys():
            if isinstance(ours[key], dict) and isinstance(theirs[key], dict):
                merged[key] = complete(ours[key], theirs[key])
        return merged

    defaults = json.loads(to_json(default.get_config()))
    return ml_collections.ConfigDict(complete(defaults, json.loads(text)))


def differences(a: Config, b: Config) -> list[str]:
    """Names of the fields in which two configs differ, such as `model.width`."""
    flat_a, flat_b = (dict(_flatten(json.loads(to_json(c)))) for c in (a, b))
    fields = sorted({*flat_a, *flat_b})
    return [field for field in fields if flat_a.get(field) != flat_b.get(field)]


def _flatten(tree: dict[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    pairs = []
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs.extend(_flatten(value, f"{prefix}{key}."))
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
