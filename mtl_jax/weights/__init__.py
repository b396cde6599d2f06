"""Imports the weights of other programs."""

from mtl_jax.weights.encoder import (
    EncoderWeights,
    check_suitable,
    load,
    save,
    start_from,
)
from mtl_jax.weights.glaucoma_mtl import OriginalNetwork, import_checkpoint
from mtl_jax.weights.public import ARCHITECTURES, import_encoder

__all__ = [
    "ARCHITECTURES",
    "EncoderWeights",
    "OriginalNetwork",
    "check_suitable",
    "import_checkpoint",
    "import_encoder",
    "load",
    "save",
    "start_from",
]
