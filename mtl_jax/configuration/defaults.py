"""Defines every field of a config. The defaults follow the paper.

Files in `configs/` start from these defaults and change some of them.
"""

from collections.abc import Callable, Mapping

import ml_collections

from mtl_jax import methods
from mtl_jax.configuration.values import Config
from mtl_jax.errors import UserError


def apply_words(
    config: Config, words: str, changes: Mapping[str, Callable[[Config], None]]
) -> Config:
    """Changes a config by the words after the colon in `--config`.

    `--config=configs/refuge.py:pcgrad,pretrained` has the words `pcgrad` and
    `pretrained`.

    Args:
      config: config to change.
      words: words separated by commas. The name of a method sets `method.name`.
      changes: functions that change the config, by word.

    Returns:
      The same config.

    Raises:
      UserError: if a word is unknown, or two words are methods.
    """
    chosen = [word for word in words.split(",") if word]
    known = list(dict.fromkeys([*methods.METHODS, *changes]))
    for word in chosen:
        if word not in known:
            raise UserError(
                f"This config has no word {word!r}; choose from {', '.join(known)}."
            )
    names = [word for word in chosen if word in methods.METHODS]
    if len(names) > 1:
        raise UserError(f"{names[0]} and {names[1]} are two methods; choose one.")
    for word in chosen:
        if word in methods.METHODS:
            config.method.name = word
        if word in changes:
            changes[word](config)
    return config


def get_config() -> Config:
    """Returns the default config."""
    config = ml_collections.ConfigDict()

    # Seeds the initialisation, the image order, the dropout and the augmentation.
    config.seed = 0
    # Some of mtl_jax/tasks.py, here the paper's; with a single task the network shrinks
    # to that task's route.
    config.tasks = ("glaucoma", "disc", "cup", "fovea")

    config.data = ml_collections.ConfigDict()
    config.data.data_dir = "data"
    # Name of the data set, as scripts/prepare_data.py prints it.
    config.data.dataset = "synthetic_fundus/256px"
    # official: the data set's splits. "0", "1", ...: training and validation merged,
    # shuffled and divided into folds, with this fold held out for validation.
    config.data.fold = "official"
    # stratified: divides each diagnosis by itself; shuffled: divides all images
    # together, as in the paper.
    config.data.folds = "stratified"
    config.data.num_folds = 5
    config.data.fold_seed = 0
    # Scales foveas to the model's image and back. centre: as the image is scaled,
    # (x + .5) * s - .5; corner: x * s, as in the authors' program.
    config.data.pixel_origin = "centre"
    # shared: each step has one batch for all tasks, and a task learns from those of its
    # images that are annotated for it. per_task: each task has a batch of its own of
    # batch_size images, all annotated for it. An epoch has as many steps.
    config.data.batches = "shared"
    # Where the training images lie, decoded. host: a step's batch is copied to the
    # devices; device: all of them are copied to each device once, 5 bytes a pixel, and
    # a step gathers its batch there.
    config.data.memory = "host"

    config.model = ml_collections.ConfigDict()
    config.model.encoder = "vgg16"  # vgg13: the authors' program; resnet34
    config.model.width = 1.0
    config.model.norm = "batch"  # batch_no_average: the authors' program; group; none
    config.model.norm_momentum = 0.99
    config.model.init = "kaiming_uniform"  # PyTorch's, as in the paper; he_uniform
    config.model.dropout = 0.8
    # Folder that scripts/import_weights.py wrote. The encoder starts from its weights.
    # All other layers start from model.init, and without a folder ("") the encoder too.
    config.model.pretrained = ""
    # on: normalises images by ImageNet's mean and deviations; off: keeps them in
    # [0, 1], as the authors' program does if pretrained too; auto: on if pretrained.
    config.model.normalize_input = "auto"
    config.model.dtype = "float32"  # bfloat16
    # The backward pass computes the features inside each block anew, instead of keeping
    # them: less memory, more arithmetic, for large images.
    config.model.remat = False

    config.loss = ml_collections.ConfigDict()
    config.loss.focal_gamma = 2.0
    config.loss.fovea_sigma = 50**0.5 / 256  # fraction of the image width
    config.loss.fovea_reduction = "mean"  # sum: the paper's formula
    # Where the target map is 1. point: at the fovea, between pixels; pixel: at the
    # nearest pixel, as in the authors' program.
    config.loss.fovea_peak = "point"

    # mtl_jax/methods.py lists the methods and explains their fields.
    config.method = ml_collections.ConfigDict()
    config.method.name = "independent"  # MTL-IO
    for name, field in methods.fields().items():
        config.method[name] = field.default

    # What a network sees of an image. "": the image as it is; whole: all of it at
    # another size; crop: a square around the optic disc, in the method two_stage only.
    config.view = ml_collections.ConfigDict()
    config.view.kind = ""
    config.view.size = 256  # pixels a side of what it sees
    config.view.margin = 2.0  # side of the square, as a multiple of the disc's
    config.view.jitter = 0.2  # in training, as a fraction of the square's side
    # In training a third of whole images are close-ups, by up to this factor.
    config.view.zoom = 1.0

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # adamw, lion, rmsprop, sgd
    # bfloat16: keeps the first moment of adam, adamw and lion in half the memory. The
    # second moment falls by 0.1 % a step, too little for bfloat16: it stays float32.
    config.optimizer.mu_dtype = "float32"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"  # cosine, linear: down to 0
    config.optimizer.warmup_epochs = 0.0
    # The encoder's parameters, but not its running averages, are frozen for this many
    # epochs. Then they train at this multiple of the learning rate.
    config.optimizer.freeze_encoder_epochs = 0.0
    config.optimizer.encoder_learning_rate_scale = 1.0

    # All off, as in the paper; mtl_jax/training/augment.py explains each.
    config.augmentation = ml_collections.ConfigDict()
    config.augmentation.flip_horizontal = False
    config.augmentation.flip_vertical = False
    config.augmentation.rotation = 0.0
    config.augmentation.scale = 0.0
    config.augmentation.shift = 0.0
    config.augmentation.brightness = 0.0
    config.augmentation.contrast = 0.0
    config.augmentation.colour = 0.0
    config.augmentation.illumination = 0.0

    config.batch_size = 8  # over all devices; see also data.batches
    # Microbatches that each gradient is summed over, for batches that do not fit in
    # memory. Statistics of norm = "batch" are those of a microbatch.
    config.accumulate = 1
    # Steps that the devices make by one call. Several are faster where a call takes
    # long for its step. The answer to a signal waits for the last of them;
    # epochs, checkpoints and logs do not.
    config.steps_per_dispatch = 1
    # --resume goes on to a larger number. The schedules cosine and linear then follow
    # the longer course from where it stands, so the learning rate rises once.
    config.num_epochs = 300
    config.validate_every = 5  # epochs; each validation writes a checkpoint
    # Steps from one checkpoint to the next, apart from those of validations. A killed
    # run repeats what follows its last one. 0: only validations write checkpoints.
    config.checkpoint_every = 0
    # Validations in a row without a new best score after which a network's training
    # ends. 0: it never ends early.
    config.patience = 0
    # What follows a step that leaves a loss, a parameter or the optimizer not finite.
    # stop: the run ends; skip: the step is undone, counted and named, and ten such
    # steps in a row end the run.
    config.on_nonfinite = "stop"

    # Logs the norms of the task gradients and the cosines between them every this many
    # steps. Each time costs another forward pass and N backward passes. 0: never.
    config.interference_every = 0

    config.evaluation = ml_collections.ConfigDict()
    # What chooses the best checkpoint: mean (of AUC, each Dice, 1 - relative fovea
    # error, those there are), or auc, dice_disc, dice_cup, fovea_error, loss.
    config.evaluation.score = "mean"
    config.evaluation.vcdr_C = 1.0  # of the logistic regression on the vCDR
    # masks: the ratio of the cleaned masks, as in the paper's text; probabilities: that
    # of the largest sums of probabilities in a column, as in the authors' program.
    config.evaluation.vcdr = "masks"
    # Which of its components is the cup. in_disc: the one with the largest part inside
    # the disc, none if none touches it; largest: as the paper does.
    config.evaluation.cup = "in_disc"
    # Pixels whose centre of mass is a fovea. map: all, as in the paper; peak: those
    # around the highest probability.
    config.evaluation.point = "map"
    # Connectivity of a mask's components; 4: the authors' program.
    config.evaluation.connectivity = 8
    # How a mask without any pixel is read; whole: as all of the image, the authors'
    # program.
    config.evaluation.empty = "empty"

    return config
