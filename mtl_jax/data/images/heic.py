"""Reads HEIC and HEIF, by `pillow_heif` of the extra `heic`."""

import pathlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from mtl_jax.data.images import conversion
from mtl_jax.data.images.conversion import Photograph
from mtl_jax.errors import UserError

# Of still pictures, and of sequences, which are refused by their number of pictures.
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
_BRANDS += (b"hevc", b"hevx", b"hevm", b"hevs", b"msf1")


def recognises(start: bytes) -> bool:
    """Whether a file that begins with these bytes is HEIC or HEIF."""
    return start[4:8] == b"ftyp" and start[8:12] in _BRANDS


def read(path: pathlib.Path, file: BinaryIO) -> Photograph:
    """Decodes a picture to RGB or grey; see `open_photograph`.

    The decoder turns the picture. By the format's definition, the orientation in its
    EXIF data does not count.
    """
    import pillow_heif

    # Pillow's own plugin of that package would cut 10 and 12 bits to 8.
    pictures = pillow_heif.open_heif(
        file, convert_hdr_to_8bit=False, hdr_to_16bit=False
    )
    if len(pictures) > 1:
        raise UserError(
            f"{path} holds {len(pictures)} pictures; save the right one as a separate"
            " file."
        )
    picture = pictures[0]
    conversion.check_size(*picture.size, path)
    values = np.asarray(picture)
    if values.ndim == 3:
        # Two channels are grey with transparency.
        values = values[..., :3] if values.shape[2] > 2 else values[..., 0]
    bits = picture.info["bit_depth"]
    if bits > 8:
        return conversion.reduce_to_8_bits(values, bits)
    return Photograph(Image.fromarray(values))
