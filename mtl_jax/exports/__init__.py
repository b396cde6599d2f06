"""Trained networks as one file for other programs: StableHLO and ONNX.

The file takes uint8 images of the network's size and gives probabilities, maps, masks
and points. A JSON beside it describes it. Folders of safetensors, which mtl_jax itself
reads, are of `mtl_jax.workdirs.export`.
"""

from mtl_jax.exports.comparison import Differences, compare
from mtl_jax.exports.file import FORMATS, Export, Format, read, write
from mtl_jax.exports.function import function_of

__all__ = [
    "FORMATS",
    "Differences",
    "Export",
    "Format",
    "compare",
    "function_of",
    "read",
    "write",
]
