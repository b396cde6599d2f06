"""Lists all files under a directory, including those in its zip archives.

Archives are read in place, member by member, and never unpacked. A member's name can
therefore not create a file elsewhere.
"""

import dataclasses
import functools
import os
import pathlib
import re
import stat
import zipfile
from collections.abc import Iterable

from mtl_jax.errors import UserError

_ARCHIVES_NOT_READ = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".001")
_ENCRYPTED = 0x1
# A photograph has a few megabytes; a larger member could fill the memory.
_LARGEST_MEMBER = 1 << 30


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file, or a member of a zip archive.

    Attributes:
      parts: path from the source directory, where an archive counts as a folder.
      path: path of the file, or of the archive.
      member: name inside the archive; None for a plain file.
      stamp: size and modification time of a file, size and checksum of a member. It
        changes with the contents.
    """

    parts: tuple[str, ...]
    path: str
    member: str | None
    stamp: tuple[int, int]

    @property
    def name(self) -> str:
        """Its name in messages."""
        return "/".join(self.parts)

    @property
    def suffix(self) -> str:
        """Its extension in lower case."""
        return os.path.splitext(self.parts[-1])[1].lower()

    def read_bytes(self) -> bytes:
        """Reads the contents.

        Raises:
          UserError: if they cannot be read.
        """
        try:
            if self.member is None:
                return pathlib.Path(self.path).read_bytes()
            modified = os.stat(self.path).st_mtime_ns
            return _open_archive(self.path, modified).read(self.member)
        # On a damaged archive, zipfile, zlib and struct raise their own exceptions.
        except Exception as error:
            raise UserError(
                f"{self.name} cannot be read ({error}); copy or download it again."
            ) from error


@dataclasses.dataclass
class Listing:
    """The files of a source.

    Attributes:
      files: the files, sorted by name.
      problems: sentences about archives and folders that cannot be read.
      notes: sentences about what is skipped on purpose.
    """

    files: list[SourceFile] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def list_files(source: pathlib.Path) -> Listing:
    """Lists a directory with its subdirectories and zip archives.

    Hidden files and the leftovers of macOS and Excel are skipped.

    Args:
      source: the directory.
    """
    found = Listing()

    def report(error: OSError) -> None:
        folder = os.path.relpath(error.filename, source)
        found.problems.append(f"{folder} cannot be read ({error.strerror}).")

    seen = set()
    for folder, subfolders, names in os.walk(source, onerror=report, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = sorted(filter(_is_wanted, subfolders))
        if real in seen:  # A link to a parent folder would be followed forever.
            subfolders.clear()
            continue
        seen.add(real)
        for name in filter(_is_wanted, names):
            _add(found, source, pathlib.Path(folder, name))
    found.files.sort(key=lambda file: file.parts)
    return found


def some(names: Iterable[str], shown: int = 3) -> str:
    """Joins the first few of many names, and tells how many more there are."""
    names = list(names)
    if len(names) <= shown + 1:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"


def _add(found: Listing, source: pathlib.Path, path: pathlib.Path) -> None:
    """Adds one file, or the members of one archive."""
    parts = path.relative_to(source).parts
    name = "/".join(parts)
    try:
        status = path.stat()
    except OSError as error:
        # A broken link; a file that it should be is reported as missing.
        found.notes.append(f"{name} is skipped ({error.strerror}).")
        return
    if not stat.S_ISREG(status.st_mode):
        return
    if path.suffix.lower() == ".zip":
        try:
            archive = _open_archive(str(path), status.st_mtime_ns)
        except Exception as error:
            found.problems.append(
                f"{name} is a truncated or damaged archive ({error}); download it "
                "again."
            )
            return
        _add_members(found, archive, path, parts)
    elif path.suffix.lower() in _ARCHIVES_NOT_READ:
        found.notes.append(f"{name} is not read; unpack it if it is needed.")
    else:
        stamp = (status.st_size, status.st_mtime_ns)
        found.files.append(SourceFile(parts, str(path), None, stamp))


def _add_members(
    found: Listing,
    archive: zipfile.ZipFile,
    path: pathlib.Path,
    parts: tuple[str, ...],
) -> None:
    name = "/".join(parts)
    unsafe, encrypted, archives = [], [], []
    # If a name occurs twice, the last entry counts, as in unpacking.
    for info in {info.filename: info for info in archive.infolist()}.values():
        # Some programs for Windows write backslashes.
        member = info.filename.replace("\\", "/")
        inner = tuple(part for part in member.split("/") if part not in ("", "."))
        if member.endswith("/") or not all(map(_is_wanted, inner)):
            if ".." in inner:
                unsafe.append(info.filename)
        elif member.startswith("/") or re.match("[A-Za-z]:", member):
            unsafe.append(info.filename)
        elif info.flag_bits & _ENCRYPTED:
            encrypted.append(member)
        elif member.lower().endswith((".zip", *_ARCHIVES_NOT_READ)):
            archives.append(member)
        elif info.file_size <= _LARGEST_MEMBER:
            stamp = (info.file_size, info.CRC)
            found.files.append(
                SourceFile(parts + inner, str(path), info.filename, stamp)
            )
    if encrypted:
        found.problems.append(
            f"{name} is encrypted ({some(encrypted)}); unpack it with its password."
        )
    if unsafe:
        found.notes.append(
            f"{name} has members whose names lead out of it ({some(unsafe)}); they are "
            "skipped."
        )
    if archives:
        found.notes.append(
            f"{name} holds archives, which are not read ({some(archives)}); unpack it "
            "if they are needed."
        )


def _is_wanted(name: str) -> bool:
    return not name.startswith((".", "~$")) and name != "__MACOSX"


@functools.lru_cache(maxsize=16)
def _open_archive(path: str, modified: int) -> zipfile.ZipFile:
    """Opens an archive once per process: reading its directory takes milliseconds.

    Args:
      path: path of the archive.
      modified: its modification time, so that a changed archive is opened anew.
    """
    del modified
    return zipfile.ZipFile(path)
