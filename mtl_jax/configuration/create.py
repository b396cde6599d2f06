"""From a config to the objects it describes."""

import jax
import jax.numpy as jnp
import optax

from mtl_jax import optim, tasks
from mtl_jax.configuration.values import DTYPES, Config
from mtl_jax.data import folds
from mtl_jax.evaluation.postprocess import PostProcessing
from mtl_jax.models import MultiTaskUNet
from mtl_jax.models.encoders import ENCODERS
from mtl_jax.training import views
from mtl_jax.training.augment import Augmentation
from mtl_jax.training.step import Augment


def create_fold(config: Config) -> folds.Fold | None:
    """How training and validation are divided; None for the data set's own splits."""
    data = config.data
    if data.fold == "official":
        return None
    return folds.Fold(int(data.fold), data.num_folds, data.fold_seed, data.folds)


def create_tasks(config: Config) -> tuple[tasks.Task, ...]:
    """The tasks to be trained, in the method's order."""
    return tasks.build(
        config.tasks,
        focal_gamma=config.loss.focal_gamma,
        fovea_sigma=config.loss.fovea_sigma,
        fovea_reduction=config.loss.fovea_reduction,
        fovea_peak=config.loss.fovea_peak,
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
        init_scheme=config.model.init,
        dropout=config.model.dropout,
        normalize_input=normalize == "on",
        dtype=DTYPES[config.model.dtype],
        axis_name=axis_name,
    )


def create_optimizer(
    config: Config, steps_per_epoch: int, key: jax.Array | None = None
) -> optim.SequentialOptimizer | optax.GradientTransformation:
    """The method's optimizer.

    Schedules of the learning rate count the steps of a state of their own; its peak is
    part of the state, as `optax.inject_hyperparams` makes it, so that one program can
    serve runs of several learning rates. The first epochs, in which the encoder may be
    frozen, are those of the training.

    Args:
      config: of the run.
      steps_per_epoch: of the training.
      key: of what is random in the method; None for `method_key` of the config.
    """

    def with_peak(learning_rate):
        schedule = _schedule(config, steps_per_epoch, learning_rate)
        return getattr(optax, config.optimizer.name)(schedule)

    tx = optax.inject_hyperparams(with_peak)(config.optimizer.learning_rate)
    key = method_key(config) if key is None else key
    frozen = round(config.optimizer.freeze_encoder_epochs * steps_per_epoch)
    scale = config.optimizer.encoder_learning_rate_scale
    if not frozen and scale == 1:
        return _create_method(config, tx, key)

    def at_step(count):
        # After the optimizer, whose moving averages see the gradients all the same.
        encoder = optim.scale_where(
            lambda path: path.startswith("encoder/"),
            jnp.where(count < frozen, 0, scale),
        )
        return _create_method(config, optax.chain(tx, encoder), key)

    return optim.by_step(at_step)


def method_key(config: Config) -> jax.Array:
    """The key of what is random in the method, such as PCGrad's order of the tasks."""
    # Not the key of the training step, which is split from the same seed.
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def _create_method(
    config: Config, tx: optax.GradientTransformation, key: jax.Array
) -> optim.SequentialOptimizer | optax.GradientTransformation:
    """The way of combining the tasks' gradients that takes steps by `tx`."""
    method, num_tasks = config.method, len(config.tasks)
    last_kernel = ENCODERS[config.model.encoder].last_kernel
    create = {
        "independent": lambda: optim.independent(tx, num_tasks),
        "alternating": lambda: optim.alternating(tx),
        # One group of all tasks: one backward pass of the sum.
        "vanilla": lambda: optim.random_grouping(tx, 1, key),
        "random_grouping": lambda: optim.random_grouping(
            tx, method.num_groups, key, states=method.states, num_tasks=num_tasks
        ),
        "per_task": lambda: optim.per_task(tx, num_tasks),
        "pcgrad": lambda: optax.chain(optim.pcgrad(key), tx),
        "gradnorm": lambda: optim.weighted(
            optim.gradnorm_weighting(
                num_tasks,
                method.gradnorm_alpha,
                method.gradnorm_learning_rate,
                shared=lambda path: path == last_kernel,
            ),
            tx,
        ),
    }
    return create[method.name]()


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
    # The first step already moves.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def create_post_processing(config: Config) -> PostProcessing:
    """How the network's maps are read."""
    return PostProcessing(
        connectivity=config.evaluation.connectivity,
        empty=config.evaluation.empty,
        vcdr=config.evaluation.vcdr,
        pixel_origin=config.data.pixel_origin,
    )


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
