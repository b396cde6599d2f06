"""Foreign weights in: files of other programs become variables of our networks."""

from mtl_jax.weights.encoder import Encoder, check_suitable, load, save, start_from
from mtl_jax.weights.vgg import ARCHITECTURES, import_vgg

__all__ = [
    "ARCHITECTURES",
    "Encoder",
    "check_suitable",
    "import_vgg",
    "load",
    "save",
    "start_from",
]
