"""Reads the formats that Pillow decodes, without what Pillow would change silently.

Pillow keeps only the upper byte of a 16-bit colour channel. It decodes either byte,
though, if it is told that the file has the other byte order, so that two passes give
all 16 bits.
"""

import contextlib
import io
import pathlib
import re
import sys
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from mtl_jax.data.images import completeness, conversion
from mtl_jax.data.images.conversion import Photograph
from mtl_jax.errors import UserError

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr", "CMYK"))
_TIFF_BITS_PER_SAMPLE, _TIFF_COMPRESSION = 258, 259
_TIFF_PHOTOMETRIC, _TIFF_PLANAR = 262, 284
_NONE, _WHITE_IS_ZERO, _PLANE_BY_PLANE = 1, 0, 2
_RAW = ("BMP", "DIB")

# Pillow's names of 16-bit colours whose two bytes it can decode apart. Transparency
# that colours are multiplied by is not among them.
_COLOURS_OF_16_BITS = re.compile(r"(?:RGB|RGBA|RGBX);16[BLN]")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def read(path: pathlib.Path, file: BinaryIO) -> Photograph:
    """Decodes a picture in any of Pillow's modes with 8 bits; see `open_photograph`."""
    with Image.open(file, formats=_FORMATS) as image:
        conversion.check_size(*image.size, path)
        bits = _bits(image)
        _check_kind(image, bits, path)
        if bits > 8:
            values = _deep_values(image, bits, file)
            conversion.check_depth(values, bits, path)
            return conversion.reduce_to_8_bits(values, bits)
        is_raw = image.format in _RAW or _tag(image, _TIFF_COMPRESSION) == _NONE
        _load(image, file)
        if image.mode == "CMYK":
            return _rgb_of_cmyk(image, path)
        # Pillow would warn that a palette loses its transparency, as intended.
        image.info.pop("transparency", None)
        return Photograph(image, is_raw=is_raw)


def _load(image: ImageFile.ImageFile, file: BinaryIO) -> None:
    image.load()
    file.seek(0)
    if completeness.lacks_data(image, file.read()):
        raise OSError("a part of the picture is missing")
    # Unreadable metadata does not make the picture unusable. In place, Pillow turns the
    # picture before it stumbles over other fields than the orientation.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _check_kind(image: ImageFile.ImageFile, bits: int, path: pathlib.Path) -> None:
    if image.mode in ("I", "F"):
        raise UserError(
            f"{path} holds signed, 32-bit or floating-point numbers, whose range is not"
            " known; save it with 8 or 16 bits per channel."
        )
    if bits > 8:
        whole = _tag(image, _TIFF_PLANAR) != _PLANE_BY_PLANE
        if not whole or not all(
            image.mode.startswith("I;16") or _COLOURS_OF_16_BITS.fullmatch(name)
            for name in map(_raw_mode, image.tile)
        ):
            raise UserError(
                f"{path} has {bits} bits per channel in an arrangement that is not read"
                f" (Pillow's {_raw_mode(image.tile[0])}"
                f"{'' if whole else ', plane by plane'}); save it as RGB or grey"
                " without transparency, pixel by pixel."
            )
    elif image.mode not in _MODES:
        raise UserError(
            f"{path} has an unsuitable pixel format (Pillow mode {image.mode}); save"
            " it as RGB or grey."
        )
    frames = getattr(image, "n_frames", 1)
    # A multi-picture JPEG is a camera's photograph followed by previews of it.
    if frames > 1 and image.format != "MPO":
        raise UserError(
            f"{path} holds {frames} pictures; save the right one as a separate file."
        )


def _bits(image: ImageFile.ImageFile) -> int:
    """The bits per channel that a file declares; `image.mode` may hide them."""
    if any(";16" in _raw_mode(tile) for tile in image.tile):
        return 16
    bits = _tag(image, _TIFF_BITS_PER_SAMPLE)
    return max(bits) if isinstance(bits, tuple) else bits or 8


def _tag(image: ImageFile.ImageFile, tag: int) -> Any:
    """A field of a TIFF file, or None."""
    return getattr(image, "tag_v2", {}).get(tag)


def _raw_mode(tile: ImageFile._Tile) -> str:
    """Pillow's name for the arrangement of the bits in a part of a file."""
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def _deep_values(image: ImageFile.ImageFile, bits: int, file: BinaryIO) -> np.ndarray:
    """Decodes a picture of more than 8 bits to uint16 [H, W] or [H, W, 3]."""
    lower_tiles = [tile._replace(args=_other_byte(tile.args)) for tile in image.tile]
    white_is_zero = _tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
    _load(image, file)
    values = np.asarray(image).astype(np.uint16)
    if values.ndim == 3:
        file.seek(0)
        with Image.open(file, formats=_FORMATS) as lower:
            lower.tile = lower_tiles
            _load(lower, file)
            values = ((values << 8) | np.asarray(lower))[..., :3]
    elif white_is_zero:
        values = np.uint16(2**bits - 1) - values
    return values


def _other_byte(args: Any) -> Any:
    """A decoder's arguments for the same file in the other byte order."""
    if isinstance(args, tuple):
        return (_other_byte(args[0]), *args[1:])
    return args[:-1] + _OTHER_BYTE.get(args[-1], args[-1])


def _rgb_of_cmyk(image: Image.Image, path: pathlib.Path) -> Photograph:
    """Converts CMYK by the file's colour profile, or else by Pillow's formula.

    Like browsers, Pillow takes a CMYK JPEG to be inverted, as Adobe's programs write
    it.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return Photograph(image.convert("RGB"), conversion.CMYK_BY_FORMULA)
    try:
        rgb = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            # The perceptual intent, Pillow's default, also stretches the black point.
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError):
        rgb = None
    if rgb is None:
        raise UserError(
            f"{path} is in CMYK (for print), and the colour profile in it cannot be"
            " used; save it as RGB."
        )
    return Photograph(rgb, conversion.CMYK_BY_PROFILE)
