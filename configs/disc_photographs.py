"""Trains on the optic disc alone, from a few dozen photographs of mixed origin.

    python scripts/prepare_data.py --dataset=fundus_folder --source=DIR \
        --name=disc --image_size=128
    python scripts/train.py --config=configs/disc_photographs.py --workdir=runs/disc \
        --config.data.dataset=fundus_folder/disc-128px

The augmentation is strong, because the photographs are few and range from whole fundi
to close-ups of the disc. The network uses group normalisation, because a batch of eight
such photographs says little about others. With batch normalisation two attempts ended
at a disc Dice of 0.80 and 0.69.

On 32 such photographs this took 12 minutes on two CPU cores and reached a disc Dice of
0.875 on 10 others at native resolution (`scripts/evaluate.py --resolution=native`).
"""

from mtl_jax.configuration import defaults


def get_config(words=""):
    config = defaults.get_config()
    config.tasks = ("disc",)
    config.model.encoder = "vgg13"
    config.model.width = 0.25
    config.model.norm = "group"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.num_epochs = 200
    config.validate_every = 50
    config.augmentation.flip_horizontal = True
    config.augmentation.flip_vertical = True
    config.augmentation.rotation = 30.0
    config.augmentation.scale = 0.6
    config.augmentation.shift = 0.1
    config.augmentation.brightness = 0.3
    config.augmentation.contrast = 0.3
    config.augmentation.colour = 0.1
    config.augmentation.illumination = 0.3
    return defaults.apply_words(config, words, {})
