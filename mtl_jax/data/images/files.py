"""Finds image files."""

import glob
import os
import pathlib

from mtl_jax.errors import UserError

# Extensions of image files in a directory; a file's contents decide its format.
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff")
    + (".webp", ".gif", ".dcm", ".dicom", ".heic", ".heif", ".hif")
)


def find_photographs(pattern_or_dir: str | os.PathLike[str]) -> list[pathlib.Path]:
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
