"""Opens a photograph or mask by means of the reader for its format."""

import io
import os
import pathlib
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mtl_jax import errors
from mtl_jax.data.images import completeness, conversion, dicom, heic, pictures
from mtl_jax.data.images.conversion import Photograph
from mtl_jax.errors import UserError

PathLike = str | pathlib.Path

# Bytes by which DICOM and HEIC are recognised.
_START = 132


def open_photograph(path: PathLike, contents: bytes | None = None) -> Photograph:
    """Decodes a photograph and applies its orientation.

    Args:
      path: a JPEG, PNG, BMP, TIFF, WebP or GIF file, or, with the extras `dicom` and
        `heic`, DICOM or HEIC. More than 8 bits per channel are scaled to 8, and CMYK is
        converted to RGB, which the result says. Grey and palette pictures become RGB;
        transparency is dropped.
      contents: bytes of the file if it is not on the disk, such as a member of an
        archive. `path` then only names it in messages.

    Returns:
      An RGB picture, and what was converted.

    Raises:
      UserError: if the file is missing, not an image, truncated, lacks a part of the
        picture, or is too small or too large for a photograph; if it holds several
        pictures, or numbers without a known range; if its values fill only a small part
        of its depth; if it is DICOM, but no colour photograph; or if the extra that
        reads it is not installed.
    """
    photograph = _load(path, contents)
    picture = _in_mode(photograph.picture, "RGB")
    if min(picture.size) < conversion.MIN_SIZE:
        raise UserError(
            f"{path} has {picture.width} x {picture.height} pixels; at least "
            f"{conversion.MIN_SIZE} a side are needed."
        )
    if photograph.is_raw and completeness.ends_inside(picture):
        raise _damaged(path, "a part of the picture is missing")
    return photograph._replace(picture=picture)


def read_photograph(path: PathLike, contents: bytes | None = None) -> np.ndarray:
    """Reads a photograph as uint8 [H, W, 3]; see `open_photograph`."""
    return np.array(open_photograph(path, contents).picture)


def open_mask(path: PathLike) -> Image.Image:
    """Decodes a mask and applies its orientation; colours and transparency stay.

    Raises:
      UserError: as `open_photograph`.
    """
    return _load(path, None).picture


def grey_values(picture: Image.Image) -> np.ndarray:
    """The grey values of a mask, uint8 [H, W].

    Colours, also those of a palette, become their luminance; a 1-bit mask becomes 0 and
    255. Transparency does not count.
    """
    return np.array(_in_mode(picture, "L"))


def read_mask(path: PathLike, contents: bytes | None = None) -> np.ndarray:
    """Reads a mask as `grey_values`; the arguments are those of `open_photograph`."""
    return grey_values(_load(path, contents).picture)


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    # Converting to the same mode would copy the picture.
    return picture if picture.mode == mode else picture.convert(mode)


def _load(path: PathLike, contents: bytes | None) -> Photograph:
    """Decodes the whole file, so that a truncated one raises here."""
    path = pathlib.Path(path)
    # Unlike pathlib's, these functions accept names that the system does not.
    if contents is None and not os.path.isfile(path):
        reason = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {reason}; name an image file.")
    try:
        with path.open("rb") if contents is None else io.BytesIO(contents) as file:
            return _read(path, file)
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{path} may not be read; change its permissions.") from None
    except ModuleNotFoundError as error:
        missing = errors.missing_extra(error)
        if missing is None:
            raise
        raise UserError(f"{path} cannot be read: {missing}") from None
    except Image.DecompressionBombError:
        raise conversion.too_large(path) from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path} is not an image, is damaged at its start, or has numbers that are"
            " not read, such as those of 32 bits; a JPEG, PNG, BMP, TIFF, WebP, GIF,"
            " DICOM or HEIC file of 8 or 16 bits per channel is needed."
        ) from None
    # On damaged files the readers raise a dozen kinds of exception (OSError, EOFError,
    # SyntaxError, struct.error, zlib.error, ...), none of them documented.
    except Exception as error:
        raise _damaged(path, " ".join(str(error).split())) from error


def _damaged(path: PathLike, reason: str) -> UserError:
    return UserError(
        f"{path} is truncated or damaged ({reason}); copy or export it again."
    )


def _read(path: pathlib.Path, file: BinaryIO) -> Photograph:
    start = file.read(_START)
    file.seek(0)
    for reader in (dicom, heic):
        if reader.recognises(start):
            return reader.read(path, file)
    return pictures.read(path, file)
