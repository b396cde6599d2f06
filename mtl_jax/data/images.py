"""Photographs and masks from real files, or one sentence that says why not.

Whatever Pillow would pass on silently changed is refused: 16-bit colour cut to 8 bits,
CMYK, the first of several pictures, a file that ends too early.
"""

import glob
import io
import os
import pathlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from mtl_jax.errors import UserError

PathLike = str | pathlib.Path

# The extensions looked for in a directory; a file's contents decide what it is.
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff")
    + (".webp", ".gif")
)

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"))
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_photograph(path: PathLike, contents: bytes | None = None) -> Image.Image:
    """Decodes a photograph, upright as its EXIF orientation says.

    Args:
      path: a JPEG, PNG, BMP, TIFF, WebP or GIF file with 8 bits per channel. Grey and
        palette pictures become RGB; transparency is dropped.
      contents: the file's bytes where they do not lie on the disk under that name (in
        an archive, say); `path` then only names them in messages.

    Returns:
      An RGB picture, all of it in memory.

    Raises:
      UserError: if the file is missing, not an image, truncated, has more than 8 bits
        per channel, is CMYK, holds several pictures or is too large to be one.
    """
    return _load(path, contents, "RGB")


def read_photograph(path: PathLike, contents: bytes | None = None) -> np.ndarray:
    """The uint8 [H, W, 3] pixels of `open_photograph`, which raises the same."""
    return np.array(open_photograph(path, contents))


def read_mask(path: PathLike, contents: bytes | None = None) -> np.ndarray:
    """Reads a mask as grey values, upright like its photograph.

    Args:
      path: a file as for `open_photograph`. Colours count by their luminance, those of
        a palette too; a 1-bit mask becomes 0 and 255.
      contents: as for `open_photograph`.

    Returns:
      uint8 [H, W].

    Raises:
      UserError: as `open_photograph`.
    """
    return np.array(_load(path, contents, "L"))


def binary_mask(grey: np.ndarray) -> np.ndarray:
    """The pixels inside a mask that has one structure.

    A mask whose largest value is 1 is taken to hold the labels 0 and 1. Every other is
    cut at half range, 128, because JPEG compression blurs the edges of 0/255 masks.

    Args:
      grey: uint8 [H, W].

    Returns:
      uint8 [H, W], 1 inside.
    """
    return (grey >= (1 if grey.max() == 1 else 128)).astype(np.uint8)


def disc_and_cup_masks(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Optic disc and cup from one mask with REFUGE's values.

    The values are 0 cup, 128 rim of the disc, 255 background; others (compression
    noise) count as the nearest of the three.

    Args:
      grey: uint8 [H, W].

    Returns:
      Two uint8 [H, W] masks, disc and cup, 1 inside.
    """
    return (grey < 192).view(np.uint8), (grey < 64).view(np.uint8)


def count_other_values(grey: np.ndarray) -> int:
    """The pixels of a mask whose value is none of REFUGE's 0, 128 and 255."""
    official = sum(np.count_nonzero(grey == value) for value in (0, 128, 255))
    return int(grey.size - official)


def find_photographs(pattern_or_dir: PathLike) -> list[pathlib.Path]:
    """Finds image files.

    Args:
      pattern_or_dir: a directory, of which the files with an image's extension are
        taken (not those of its subdirectories, not hidden ones); one file; or a glob
        pattern (`**` spans directories). Named files and those of a pattern are taken
        whatever their extension, so that a wrong one is reported when it is read.

    Returns:
      The paths, sorted; at least one.

    Raises:
      UserError: if there are none.
    """
    place = pathlib.Path(pattern_or_dir).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [path for path in place.iterdir() if path.suffix.lower() in EXTENSIONS]
    else:
        found = [pathlib.Path(name) for name in glob.glob(str(place), recursive=True)]
    photographs = sorted(path for path in found if path.is_file() and _is_wanted(path))
    if photographs:
        return photographs
    if place.is_dir():
        raise UserError(
            f"{place} holds no image file ({' '.join(sorted(EXTENSIONS))}); name the"
            " directory that holds the photographs themselves, or a pattern such as"
            f" '{place}/**/*.jpg'."
        )
    if glob.has_magic(str(place)):
        raise UserError(f"No file matches the pattern {place}; check it for typos.")
    raise UserError(f"{place} does not exist; check the path for typos.")


def _is_wanted(path: pathlib.Path) -> bool:
    return not path.name.startswith(".") and "__MACOSX" not in path.parts


def _load(path: PathLike, contents: bytes | None, mode: str) -> Image.Image:
    """Decodes the whole file, so that a truncated one is found out here."""
    path = pathlib.Path(path)
    # Unlike pathlib's, these take names too long or strange for the system as well.
    if contents is None and not os.path.isfile(path):
        reason = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {reason}; name an image file.")
    try:
        file = path if contents is None else io.BytesIO(contents)
        with Image.open(file, formats=_FORMATS) as image:
            _check_kind(image, path)
            image.load()
            image = _upright(image)
            # Converting a large picture to what it is already would copy it.
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
    # Pillow's readers meet damage with a dozen kinds of exception (OSError, EOFError,
    # SyntaxError, struct.error, zlib.error, ValueError, ...), none of them documented.
    except Exception as error:
        raise UserError(
            f"{path} is truncated or damaged ({error}); copy or export it again."
        ) from error


def _check_kind(image: Image.Image, path: pathlib.Path) -> None:
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
            f"{path} has pixels of an unsuitable kind (Pillow mode {image.mode}); save"
            " it as RGB or grey with 8 bits per channel."
        )
    frames = getattr(image, "n_frames", 1)
    # A multi-picture JPEG is a camera's photograph followed by its own previews.
    if frames > 1 and image.format != "MPO":
        raise UserError(
            f"{path} holds {frames} pictures; save the right one as a file of its own."
        )


def _has_deep_channels(image: Image.Image) -> bool:
    """Whether the file has over 8 bits per channel, which `image.mode` may hide."""
    if image.mode.startswith(("I", "F")):
        return True
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, ())
    if max(bits if isinstance(bits, tuple) else (bits,), default=1) > 8:
        return True
    return any(";16" in str(tile[3]) for tile in image.tile)


def _upright(image: Image.Image) -> Image.Image:
    """A loaded image turned as its EXIF says, ready for conversion."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    # Metadata that cannot be read is no reason to lose the picture.
    except Exception:
        orientation = 1
    # Pillow warns when a palette with transparency loses it, which is what is wanted.
    image.info.pop("transparency", None)
    method = _TO_UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _too_large(path: pathlib.Path) -> UserError:
    return UserError(
        f"{path} claims over {Image.MAX_IMAGE_PIXELS:,} pixels, more than any fundus"
        " photograph; reduce it."
    )
