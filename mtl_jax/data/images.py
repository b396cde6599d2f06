"""Reads photographs and masks from files.

Files that Pillow would change silently are refused: 16-bit colour (cut to 8 bits),
CMYK, several pictures (only the first is read), and truncated files.
"""

import contextlib
import glob
import io
import os
import pathlib

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mtl_jax.errors import UserError

PathLike = str | pathlib.Path

# Extensions of image files in a directory; a file's contents decide its format.
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff")
    + (".webp", ".gif")
)

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"))
_TIFF_BITS_PER_SAMPLE = 258


def open_photograph(path: PathLike, contents: bytes | None = None) -> Image.Image:
    """Decodes a photograph and applies its EXIF orientation.

    Args:
      path: a JPEG, PNG, BMP, TIFF, WebP or GIF file with 8 bits per channel. Grey and
        palette pictures become RGB; transparency is dropped.
      contents: bytes of the file if it is not on the disk, such as a member of an
        archive. `path` then only names it in messages.

    Returns:
      An RGB picture, loaded into memory.

    Raises:
      UserError: if the file is missing, not an image, truncated, has more than 8 bits
        per channel, is CMYK, holds several pictures or is too large for a photograph.
    """
    return _load(path, contents, "RGB")


def read_photograph(path: PathLike, contents: bytes | None = None) -> np.ndarray:
    """Reads a photograph as uint8 [H, W, 3]; see `open_photograph`."""
    return np.array(open_photograph(path, contents))


def read_mask(path: PathLike, contents: bytes | None = None) -> np.ndarray:
    """Reads a mask as grey values and applies its EXIF orientation.

    Args:
      path: a file as for `open_photograph`. Colours, also those of a palette, become
        their luminance; a 1-bit mask becomes 0 and 255.
      contents: as for `open_photograph`.

    Returns:
      uint8 [H, W].

    Raises:
      UserError: as `open_photograph`.
    """
    return np.array(_load(path, contents, "L"))


def binary_mask(grey: np.ndarray) -> np.ndarray:
    """Thresholds the mask of one structure.

    A mask whose largest value is 1 holds the labels 0 and 1. All others are cut at half
    range, 128, because JPEG compression blurs the edges of 0/255 masks.

    Args:
      grey: uint8 [H, W].

    Returns:
      uint8 [H, W], 1 inside.
    """
    return (grey >= (1 if grey.max() == 1 else 128)).astype(np.uint8)


def disc_and_cup_masks(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Separates optic disc and cup of a mask with REFUGE's values.

    The values are 0 cup, 128 rim of the disc, 255 background. Other values (compression
    noise) count as the nearest of the three.

    Args:
      grey: uint8 [H, W].

    Returns:
      Two uint8 [H, W] masks, disc and cup, 1 inside.
    """
    return (grey < 192).view(np.uint8), (grey < 64).view(np.uint8)


def count_other_values(grey: np.ndarray) -> int:
    """Counts the pixels of a mask with other values than REFUGE's 0, 128 and 255."""
    official = sum(np.count_nonzero(grey == value) for value in (0, 128, 255))
    return int(grey.size - official)


def find_photographs(pattern_or_dir: PathLike) -> list[pathlib.Path]:
    """Finds image files.

    Args:
      pattern_or_dir: a directory, a file, or a glob pattern (`**` spans directories).
        A directory stands for its visible files with an image's extension, without
        those of its subdirectories. A file or pattern is taken with any extension, so
        that a wrong file is reported when it is read.

    Returns:
      One or more paths, sorted.

    Raises:
      UserError: if there are none.
    """
    root = pathlib.Path(pattern_or_dir).expanduser()
    if root.is_file():
        return [root]
    if root.is_dir():
        found = [path for path in root.iterdir() if path.suffix.lower() in EXTENSIONS]
    else:
        found = [pathlib.Path(name) for name in glob.glob(str(root), recursive=True)]
    photographs = sorted(path for path in found if path.is_file() and _is_wanted(path))
    if photographs:
        return photographs
    if root.is_dir():
        raise UserError(
            f"{root} holds no image file ({' '.join(sorted(EXTENSIONS))}); name the"
            " directory that holds the photographs themselves, or a pattern such as"
            f" '{root}/**/*.jpg'."
        )
    if glob.has_magic(str(root)):
        raise UserError(f"No file matches the pattern {root}; check it for typos.")
    raise UserError(f"{root} does not exist; check the path for typos.")


def _is_wanted(path: pathlib.Path) -> bool:
    return not path.name.startswith(".") and "__MACOSX" not in path.parts


def _load(path: PathLike, contents: bytes | None, mode: str) -> Image.Image:
    """Decodes the whole file, so that a truncated one raises here."""
    path = pathlib.Path(path)
    # Unlike pathlib's, these functions accept names that the system does not.
    if contents is None and not os.path.isfile(path):
        reason = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {reason}; name an image file.")
    try:
        file = path if contents is None else io.BytesIO(contents)
        with Image.open(file, formats=_FORMATS) as image:
            _check_kind(image, path)
            image.load()
            # Unreadable metadata does not make the picture unusable. In place, Pillow
            # turns the picture before it stumbles over other fields than the
            # orientation.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(image, in_place=True)
            # Pillow would warn that a palette loses its transparency, as intended.
            image.info.pop("transparency", None)
            # Converting to the same mode would copy the picture.
            return image if image.mode == mode else image.convert(mode)
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{path} may not be read; change its permissions.") from None
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path} is not an image or is damaged at its start; a JPEG, PNG, BMP,"
            " TIFF, WebP or GIF file is needed."
        ) from None
    # On damaged files Pillow's readers raise a dozen kinds of exception (OSError,
    # EOFError, SyntaxError, struct.error, zlib.error, ...), none of them documented.
    except Exception as error:
        raise UserError(
            f"{path} is truncated or damaged ({error}); copy or export it again."
        ) from error


def _check_kind(image: ImageFile.ImageFile, path: pathlib.Path) -> None:
    if min(image.size) < 1:
        raise UserError(f"{path} has no pixels; export it again.")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _too_large(path)
    if _has_deep_channels(image):
        raise UserError(
            f"{path} has more than 8 bits per channel; save it with 8 bits (0 to 255)."
        )
    if image.mode == "CMYK":
        raise UserError(f"{path} is a CMYK picture (for print); save it as RGB.")
    if image.mode not in _MODES:
        raise UserError(
            f"{path} has an unsuitable pixel format (Pillow mode {image.mode}); save"
            " it as RGB or grey with 8 bits per channel."
        )
    frames = getattr(image, "n_frames", 1)
    # A multi-picture JPEG is a camera's photograph followed by previews of it.
    if frames > 1 and image.format != "MPO":
        raise UserError(
            f"{path} holds {frames} pictures; save the right one as a separate file."
        )


def _has_deep_channels(image: ImageFile.ImageFile) -> bool:
    """Whether the file has over 8 bits per channel; `image.mode` may hide them."""
    if image.mode.startswith(("I", "F")):
        return True
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, ())
    if max(bits if isinstance(bits, tuple) else (bits,), default=1) > 8:
        return True
    return any(";16" in str(tile[3]) for tile in image.tile)


def _too_large(path: pathlib.Path) -> UserError:
    return UserError(
        f"{path} claims over {Image.MAX_IMAGE_PIXELS:,} pixels, more than any fundus"
        " photograph; reduce it."
    )
