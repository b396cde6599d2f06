"""Every field of a config, with the values of the paper and its program.

Files in `configs/` start from these and override what differs.
"""

from collections.abc import Callable, Mapping

import ml_collections

from mtl_jax import methods
from mtl_jax.configuration.values import Config
from mtl_jax.errors import UserError


def apply_words(
    config: Config, words: str, changes: Mapping[str, Callable[[Config], None]]
) -> Config:
    """Changes a config by the words behind a file's name.

    `--config=configs/refuge.py:pcgrad,pretrained` has the words `pcgrad` and
    `pretrained`.

    Args:
      config: to change.
      words: separated by commas; the name of a method sets `method.name`.
      changes: by word, what else it does.

    Returns:
      The same config.

    Raises:
      UserError: for an unknown word, or two methods.
    """
    chosen = [word for word in words.split(",") if word]
    known = list(dict.fromkeys([*methods.METHODS, *changes]))
    for word in chosen:
        if word not in known:
            raise UserError(
                f"{word!r} is no word of this config; choose from {', '.join(known)}."
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
    """The defaults."""
    config = ml_collections.ConfigDict()

    # One seed for initialisation, order of the images, dropout and augmentation.
    config.seed = 0
    # Some of mtl_jax/tasks.py, here the paper's; with a single task the network shrinks
    # to that task's route.
    config.tasks = ("glaucoma", "disc", "cup", "fovea")

    config.data = ml_collections.ConfigDict()
    config.data.data_dir = "data"
    # As scripts/prepare_data.py prints it at the end.
    config.data.dataset = "synthetic_fundus/256px"
    # official: the data set's splits. "0", "1", ...: training and validation merged,
    # shuffled and divided anew, that fold held out for validation.
    config.data.fold = "official"
    # stratified: each diagnosis by itself; shuffled: all images together, as in the
    # paper.
    config.data.folds = "stratified"
    config.data.num_folds = 5
    config.data.fold_seed = 0
    # How a fovea goes to the size of the model's image and back: centre: as the image
    # does, (x + .5) * s - .5; corner: x * s, the authors' program.
    config.data.pixel_origin = "centre"

    config.model = ml_collections.ConfigDict()
    config.model.encoder = "vgg16"  # vgg13: the authors' program; resnet34
    config.model.width = 1.0
    config.model.norm = "batch"  # batch_no_average: the authors' program; group; none
    config.model.norm_momentum = 0.99
    config.model.init = "kaiming_uniform"  # of PyTorch, the paper's; he_uniform
    config.model.dropout = 0.8
    # Folder that scripts/import_weights.py wrote: the encoder starts from it, all else
    # from model.init. Without one ("") the encoder does as well.
    config.model.pretrained = ""
    # Images minus ImageNet's mean, by its deviations: on; off: in [0, 1] as they are,
    # the authors' program even with a pretrained encoder; auto: on if pretrained.
    config.model.normalize_input = "auto"
    config.model.dtype = "float32"  # bfloat16

    config.loss = ml_collections.ConfigDict()
    config.loss.focal_gamma = 2.0
    config.loss.fovea_sigma = 50**0.5 / 256  # fraction of the image width
    config.loss.fovea_reduction = "mean"  # sum: the paper's formula
    # Where the target map is 1: point: at the fovea, between pixels; pixel: at the
    # pixel next to it, the authors' program.
    config.loss.fovea_peak = "point"

    # mtl_jax/methods.py lists the methods and explains their fields.
    config.method = ml_collections.ConfigDict()
    config.method.name = "independent"  # MTL-IO
    for name, field in methods.fields().items():
        config.method[name] = field.default

    # What a network sees of the data set's images: "" as they are; whole: all of it at
    # another size. The second network of two_stage sees a square around the optic disc.
    config.view = ml_collections.ConfigDict()
    config.view.kind = ""
    config.view.size = 256  # pixels a side of what it sees
    config.view.margin = 2.0  # side of the square, in times the disc's
    config.view.jitter = 0.2  # of the square in training, as a fraction of its side

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # adamw, lion, rmsprop, sgd
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"  # cosine, linear: down to 0
    config.optimizer.warmup_epochs = 0.0
    # The encoder's parameters stay as they are for the first so many epochs (its
    # running averages do not), and move at this multiple of the learning rate then.
    config.optimizer.freeze_encoder_epochs = 0.0
    config.optimizer.encoder_learning_rate_scale = 1.0

    # All off, as in the paper; mtl_jax/training/augment.py says what each means.
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

    config.batch_size = 8  # over all devices
    config.num_epochs = 300
    config.validate_every = 5  # epochs; a checkpoint is written as often

    # Log norms of the task gradients and cosines between them every so many steps, at
    # the price of another forward and N backward passes then; 0: never.
    config.interference_every = 0

    config.evaluation = ml_collections.ConfigDict()
    # What chooses the best checkpoint: mean (of AUC, each Dice, 1 - relative fovea
    # error, those there are), or auc, dice_disc, dice_cup, fovea_error, loss.
    config.evaluation.score = "mean"
    config.evaluation.vcdr_C = 1.0  # of the logistic regression on the vCDR
    # Of cleaned masks, the paper's text; probabilities: largest sum in a column, of
    # disc and of cup, the authors' program.
    config.evaluation.vcdr = "masks"
    config.evaluation.connectivity = (
        8  # of a mask's components; 4: the authors' program
    )
    # What a mask is where no pixel is inside; whole: all of the image, the authors'
    # program.
    config.evaluation.empty = "empty"

    return config
