"""Trains the network that the package includes, from photographs with partial labels.

    python scripts/prepare_data.py --dataset=fundus_folder --source=NAME:DIR,NAME:DIR \
        --name=real --image_size=512
    python scripts/train.py --config=configs/fundus.py --workdir=runs/fundus

Two small networks see 128 x 128 pixels each. The first finds disc and fovea on the
whole field of view; the second diagnoses glaucoma and segments disc and cup in a square
around the disc. Both are trained by MTL-IO, and each task draws its own batches from
the photographs that are annotated for it. A third of the whole images are replaced by
close-ups, because users bring photographs of the disc alone.

The words after a colon are methods of one network, such as
configs/fundus.py:independent. It sees the whole field of view and learns all tasks.

The word `study` is the config of docs/study_real.md. Its one network is small and
trained shortly, so that six methods at three learning rates take hours.
"""

from mtl_jax import methods
from mtl_jax.configuration import defaults


def study(config):
    """Trains a smaller network of 96 x 96 pixels, on whole fundi alone."""
    config.data.dataset = "fundus_folder/study-96px"
    config.method.name = "independent"
    config.view.size = 96
    config.view.zoom = 1.0
    config.model.width = 0.125
    config.model.dropout = 0.2
    config.loss.fovea_sigma = 0.08
    config.batch_size = 4
    config.num_epochs = 10
    config.validate_every = 2


def get_config(words=""):
    config = defaults.get_config()
    config.data.dataset = "fundus_folder/real-512px"
    config.data.batches = "per_task"
    config.method.name = "two_stage"
    config.method.stage_method = "independent"
    config.view.size = 128
    config.view.jitter = 0.3
    config.view.zoom = 8.0
    config.model.encoder = "vgg13"
    config.model.width = 0.25
    config.model.norm = "group"
    config.model.dropout = 0.5
    config.loss.fovea_sigma = 0.04
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.num_epochs = 40
    config.validate_every = 5
    config.evaluation.point = "peak"
    config.augmentation.flip_horizontal = True
    config.augmentation.flip_vertical = True
    config.augmentation.rotation = 30.0
    config.augmentation.scale = 0.2
    config.augmentation.shift = 0.1
    config.augmentation.brightness = 0.3
    config.augmentation.contrast = 0.4
    config.augmentation.colour = 0.15
    config.augmentation.illumination = 0.3
    defaults.apply_words(config, words, {"study": study})
    if methods.METHODS[config.method.name].create:
        config.view.kind = "whole"
    return config
