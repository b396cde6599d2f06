"""A small drawn data set: the network that scripts/demo.sh trains, by MTL-IO.

    python scripts/prepare_data.py --dataset=synthetic_fundus --data_dir=demo/data \
        --image_size=96 --num_images=240,60,100 --glaucoma_fraction=0.4
    python scripts/train.py --config=configs/synthetic.py --workdir=demo/run

An eighth of the paper's width and 700 steps instead of 15,000: hence the larger
learning rate, the wider fovea target and the weaker dropout. The colours are varied
because training and test split are taken with different cameras.

Words behind a colon: a method, such as configs/synthetic.py:vanilla (mtl_jax/methods.py
has all), and `study`, the config of docs/study.md. That has 64 x 64 pixels. Of its 300
images for training and validation a fold trains on 200, so that 48 epochs are 1200
steps: half as many are too few for a network of the cup alone.
"""

from mtl_jax.configuration import defaults


def study(config):
    """Longer, on smaller images."""
    config.data.dataset = "synthetic_fundus/64px-240-60-100-glaucoma0.4"
    config.num_epochs = 48


def get_config(words=""):
    config = defaults.get_config()
    config.data.data_dir = "demo/data"
    config.data.dataset = "synthetic_fundus/96px-240-60-100-glaucoma0.4"
    config.model.encoder = "vgg13"
    config.model.width = 0.125
    config.model.norm_momentum = 0.9
    config.model.dropout = 0.2
    config.loss.fovea_sigma = 0.08
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule = "cosine"
    config.augmentation.flip_horizontal = True
    config.augmentation.brightness = 0.15
    config.augmentation.contrast = 0.15
    config.augmentation.colour = 0.1
    config.num_epochs = 24
    config.validate_every = 4
    return defaults.apply_words(config, words, {"study": study})
