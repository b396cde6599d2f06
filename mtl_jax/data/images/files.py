"""Finds image files."""

import collections
import contextlib
import glob
import os
import pathlib
from collections.abc import Iterable, Iterator

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
        those of its subdirectories; `DIR/**` includes these. A file or any other
        pattern is taken with any extension, so that a wrong file is reported when it is
        read.

    Returns:
      One or more paths, sorted.

    Raises:
      UserError: if there are none.
    """
    root = pathlib.Path(os.path.expanduser(pattern_or_dir))
    if os.path.isfile(root):
        return [root]
    found = _images_in(root) if os.path.isdir(root) else _expand(str(root))
    wanted = {path for path in found if path.is_file() and _is_wanted(path)}
    if wanted:
        return sorted(wanted)
    if os.path.isdir(root):
        raise UserError(
            f"{root} holds no image file ({' '.join(sorted(EXTENSIONS))}); name the"
            " directory that holds the photographs themselves, or, for those of its"
            f" subdirectories too, '{root}/**'."
        )
    if glob.has_magic(str(root)):
        raise UserError(f"No file matches the pattern {root}; check it for typos.")
    raise UserError(f"{root} does not exist; check the path for typos.")


def _images_in(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)


def _expand(pattern: str) -> Iterator[pathlib.Path]:
    """Finds what a glob pattern matches; its `**` enters every folder once."""
    parts = pathlib.PurePath(pattern).parts
    if "**" not in parts:
        yield from map(pathlib.Path, glob.glob(pattern))
        return
    at = parts.index("**")
    before, after = parts[:at], parts[at + 1 :]
    for folder in _folders(glob.glob(os.path.join("", *before) or ".")):
        if after:
            yield from _expand(os.path.join(glob.escape(folder), *after))
        else:
            yield from _images_in(pathlib.Path(folder))


def _folders(tops: Iterable[str]) -> Iterator[str]:
    """Walks folders and all visible ones in them, the upper ones first.

    Each comes once, because links may lead in a circle.
    """
    queue, seen = collections.deque(sorted(tops)), set()
    while queue:
        folder = queue.popleft()
        if (place := os.path.realpath(folder)) in seen or not os.path.isdir(folder):
            continue
        seen.add(place)
        yield folder
        # As glob does, it passes over what may not be listed.
        with contextlib.suppress(PermissionError):
            names = sorted(name for name in os.listdir(folder) if name[0] != ".")
            queue.extend(os.path.join(folder, name) for name in names)


def _is_wanted(path: pathlib.Path) -> bool:
    return not path.name.startswith(".") and "__MACOSX" not in path.parts
