"""Builds the objects that a config describes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtl_jax import losses, methods, optim, tasks
from mtl_jax.configuration.values import DTYPES, Config
from mtl_jax.data import folds
from mtl_jax.errors import UserError
from mtl_jax.inference.postprocess import PostProcessing
from mtl_jax.models import MultiTaskUNet
from mtl_jax.models.encoders import ENCODERS
from mtl_jax.training import views
from mtl_jax.training.augment import Augmentation
from mtl_jax.training.step import Augment, Optimizer


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All objects that a config describes.

    Attributes:
      config: the config itself.
      tasks: tasks to train, in the order of `tasks.TASKS`.
      model: the network, with a head for each task.
      augment: augmentation of training images; None for none.
      view: the part of an image that the network sees; None for the whole image.
      post: rules that turn the network's maps into masks and points.
      fold: division into training and validation; None for the data set's splits.
    """

    config: Config
    tasks: tuple[tasks.Task, ...]
    model: MultiTaskUNet
    augment: Augment | None
    view: views.View | None
    post: PostProcessing
    fold: folds.Fold | None

    def variable_shapes(self) -> dict[str, Any]:
        """Returns shapes and dtypes of the network's `params` and `batch_stats`."""
        images = jnp.zeros((1, 32, 32, 3))
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), images)
        return {"batch_stats": {}, **shapes}

    def optimizer(self, steps_per_epoch: int) -> Optimizer:
        """Makes the method's optimizer.

        The peak of the learning rate is part of the state, so that runs with different
        rates share a compiled program. The schedule counts the steps of that state. The
        freezing of the encoder counts the steps of the training.

        Args:
          steps_per_epoch: number of training steps in an epoch.
        """
        config = self.config
        options = {}
        if config.optimizer.mu_dtype != "float32":
            options["mu_dtype"] = DTYPES[config.optimizer.mu_dtype]

        def with_peak(learning_rate):
            schedule = _schedule(config, steps_per_epoch, learning_rate)
            return getattr(optax, config.optimizer.name)(schedule, **options)

        tx = optax.inject_hyperparams(with_peak)(config.optimizer.learning_rate)
        frozen = round(config.optimizer.freeze_encoder_epochs * steps_per_epoch)
        scale = config.optimizer.encoder_learning_rate_scale
        if not frozen and scale == 1:
            return _method(config, tx)

        def at_step(count):
            # Scale after the optimizer: its moving averages still see the gradients.
            encoder = optax.masked(
                optax.scale(jnp.where(count < frozen, 0, scale)),
                _is_of_encoder,
            )
            return _method(config, optax.chain(tx, encoder))

        # optax.scale_by_schedule counts the steps of its own state: alternating between
        # two tasks it froze the encoder for 3 steps instead of 6.
        return optim.by_step(at_step)


def build(config: Config) -> Experiment:
    """Builds the objects of a config that `check` has accepted.

    Raises:
      UserError: if JAX computes in 64 bits.
    """
    if jnp.result_type(float) == jnp.float64:
        raise UserError(
            "JAX_ENABLE_X64 is set, and networks compute in 32 bits; unset it."
        )
    chosen = tasks.build(config.tasks, losses.Settings(**config.loss))
    view = views.View(**config.view) if config.view.kind else None
    return Experiment(
        config=config,
        tasks=chosen,
        model=_model(config, chosen),
        augment=_augment(Augmentation(**config.augmentation), view),
        view=view,
        post=PostProcessing(
            connectivity=config.evaluation.connectivity,
            empty=config.evaluation.empty,
            vcdr=config.evaluation.vcdr,
            cup=config.evaluation.cup,
            point=config.evaluation.point,
            pixel_origin=config.data.pixel_origin,
        ),
        fold=_fold(config),
    )


def _model(config: Config, heads: tuple[tasks.Task, ...]) -> MultiTaskUNet:
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
        init_scheme=config.model.init,
        dropout=config.model.dropout,
        normalize_input=normalize == "on",
        dtype=DTYPES[config.model.dtype],
        remat=config.model.remat,
    )


def _fold(config: Config) -> folds.Fold | None:
    data = config.data
    if data.fold == "official":
        return None
    return folds.Fold(int(data.fold), data.num_folds, data.fold_seed, data.folds)


def _augment(augmentation: Augmentation, view: views.View | None) -> Augment | None:
    if view is None:
        return augmentation or None

    def augment(key, batch, index):
        view_key, key = jax.random.split(key)
        return augmentation(key, view(view_key, batch, index), index)

    return augment if augmentation else view


def _method(config: Config, tx: optax.GradientTransformation) -> Optimizer:
    """Makes the optimizer that combines the tasks' gradients and steps with `tx`."""
    setting = methods.Setting(
        tx=tx,
        num_tasks=len(config.tasks),
        # Differs from the training step's key, which is split from the same seed.
        key=jax.random.fold_in(jax.random.key(config.seed), 1),
        last_shared=ENCODERS[config.model.encoder].last_kernel,
        fields=config.method,
    )
    create = methods.METHODS[config.method.name].create
    assert create is not None, "a method of several networks, see part_configs"
    return create(setting)


def _is_of_encoder(params: Any) -> dict[str, bool]:
    return {name: name == "encoder" for name in params}


def _schedule(config: Config, steps_per_epoch: int, peak: jax.Array) -> optax.Schedule:
    warmup = round(config.optimizer.warmup_epochs * steps_per_epoch)
    steps = max(config.num_epochs * steps_per_epoch - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps),
        "linear": lambda: optax.linear_schedule(peak, 0.0, steps),
    }[config.optimizer.schedule]()
    if not warmup:
        return after
    # The first step already has a learning rate above 0.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])
