"""Trains a small network on drawn fundi by MTL-IO, as scripts/demo.sh does.

    python scripts/prepare_data.py --dataset=synthetic_fundus --data_dir=demo/data \
        --image_size=96 --num_images=240,60,100 --glaucoma_fraction=0.4
    python scripts/train.py --config=configs/synthetic.py --workdir=demo/run

The network has an eighth of the paper's width, and trains for 700 steps instead of
15,000. This needs a larger learning rate, a wider fovea target and weaker dropout. The
colours are varied because the training and test splits have different cameras.

A word after a colon is a method, such as configs/synthetic.py:vanilla
(mtl_jax/methods.py lists all), or `study`, the config of docs/study.md. Its images have
64 x 64 pixels. A fold trains on 200 of the 300 images for training and validation, so
48 epochs are 1200 steps. Half as many are too few for a network of the cup alone.
"""

from mtl_jax.configuration import defaults


def study(config):
    """Trains longer, on smaller images."""
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
    # The published results of this config were read off so.
    config.evaluation.cup = "largest"
    return defaults.apply_words(config, words, {"study": study})
