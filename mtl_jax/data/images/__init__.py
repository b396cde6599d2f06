"""Photographs and masks from files of any format that cameras and archives write.

`open_photograph` opens a file, recognises its format by its contents, and gives it to
one of the readers: `pictures` (what Pillow decodes), `dicom`, `heic`. What they convert
with a loss is said by `Photograph.conversion`; all else that would change a photograph
is refused.
"""

from mtl_jax.data.images.conversion import Photograph, conversion_sentences
from mtl_jax.data.images.files import EXTENSIONS, find_photographs
from mtl_jax.data.images.masks import (
    binary_mask,
    count_other_values,
    disc_and_cup_masks,
)
from mtl_jax.data.images.reading import (
    PathLike,
    grey_values,
    open_mask,
    open_photograph,
    read_mask,
    read_photograph,
)

__all__ = [
    "EXTENSIONS",
    "PathLike",
    "Photograph",
    "binary_mask",
    "conversion_sentences",
    "count_other_values",
    "disc_and_cup_masks",
    "find_photographs",
    "grey_values",
    "open_mask",
    "open_photograph",
    "read_mask",
    "read_photograph",
]
