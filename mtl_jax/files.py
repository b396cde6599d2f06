"""Writes files and folders completely or not at all, and replaces only its own."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, NamedTuple

import filelock

from mtl_jax.errors import UserError, no_room

# In every folder that is written here: the SHA-256 of each file in it. Its JSON values
# stand one after the other, since a folder that grows gets one for every file.
_RECORD = ".mtl_jax.json"
# The file that a folder which grows gets next.
_PARTIAL = ".mtl_jax.partial"
# Spreadsheets pass over white space before a formula.
_FORMULA = re.compile(r"'*\s*[=+\-@]")
# What file managers leave in a folder that somebody looks at, and a killed process.
_LEFT_BEHIND = {".DS_Store", "Thumbs.db", "desktop.ini", _PARTIAL}
# What a system says of a name that it does not allow, and of no other.
_NOT_A_NAME = (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG)
_IN_USE = "Another process writes to {}; wait for it, or name another output folder."
_NOTE = "mtl_jax replaces this folder as long as it holds these files only, unchanged."


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in UTF-8, completely or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        # A failed write does not know what it writes to.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as indented JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Parses JSON that somebody else may have written.

    Raises:
      ValueError: if it is not JSON, or nested so deeply that Python gives up.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_csv(
    path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Writes rows as CSV in UTF-8, as they come.

    None and absent keys are empty. A text that a spreadsheet would compute, as it
    begins with = + - @, gets a leading apostrophe, which `text_of` takes off. So does
    one with apostrophes before such a sign.

    Reference:
      OWASP, CSV Injection.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(_csv_line(columns))
        file.writelines(_csv_line(map(row.get, columns)) for row in rows)


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    safe = [_safe(cell) if isinstance(cell, str) else cell for cell in cells]
    csv.writer(line).writerow(safe)
    return line.getvalue()


def text_of(cell: str) -> str:
    """Returns the text of a cell that `write_csv` wrote."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def _safe(text: str) -> str:
    return f"'{escape(text)}" if _FORMULA.match(text) else escape(text)


def escape(name: str) -> str:
    r"""Writes bytes of a file's name that are not UTF-8 as `\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file whose name is UTF-8, whatever the system's encoding is."""
    return folder / os.fsdecode(name.encode("utf-8"))


def check_replaceable(path: pathlib.Path, used: Collection[pathlib.Path] = ()) -> None:
    """Refuses an output path that this module's folders would refuse.

    What is there may be replaced if it is an empty folder, or one that was written here
    and in which nobody has added or changed a file since.

    Args:
      path: path of the output.
      used: files and folders that the output must neither be nor hold.

    Raises:
      UserError: if `path` holds anything else, or is a folder that is in use.
    """
    _check_place(path, used)
    path = resolved(path)
    if os.path.exists(path):
        _check_ours(path)


def _check_place(path: pathlib.Path, used: Collection[pathlib.Path]) -> None:
    """Refuses an output folder that is, or holds, something in use."""
    path = resolved(path)
    if os.path.ismount(path):
        raise UserError(f"{path} is a whole file system; name a folder in it.")
    if pathlib.Path.cwd().is_relative_to(path):
        raise UserError(
            f"{path} is the current folder or holds it; name another output folder."
        )
    for one in used:
        if resolved(one).is_relative_to(path):
            raise UserError(
                f"{path} is or holds {one}, which is used here; name another output "
                "folder."
            )
    if path.is_dir():
        with locked(path) as is_free:
            if not is_free:
                raise UserError(_IN_USE.format(path))


def _check_ours(path: pathlib.Path) -> None:
    if reason := _somebody_elses(path):
        raise UserError(
            f"{path} holds something else than earlier output ({reason}); name another "
            "output folder, or move this one away."
        )


@contextlib.contextmanager
def whole_directory(
    path: pathlib.Path, used: Collection[pathlib.Path] = ()
) -> Iterator[pathlib.Path]:
    """Creates a directory that appears at its path when the block ends without error.

    A list of its files, with their digests, tells later that they may be replaced.

    Args:
      path: path of the directory. An existing directory is replaced, if
        `check_replaceable` finds it to be ours both before and after the block.
      used: files and folders that the directory must neither be nor hold.

    Yields:
      A temporary directory to write to.

    Raises:
      UserError: if `path` may not be replaced, or cannot be written.
    """
    check_replaceable(path, used)
    path = resolved(path)
    with _making(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
    # Only its owner may enter the temporary folder; in it, the umask decides.
    new, old = (pathlib.Path(temporary, name) for name in ("new", "old"))
    try:
        with _having_room(path):
            new.mkdir()
            yield new
            found = _files(new)
            # Of a folder that grew here.
            found.pop(_RECORD, None)
            digests = {name: _digest(file) for name, file in found.items()}
            write_json(new / _RECORD, {"note": _NOTE, "files": digests})
            check_replaceable(path, used)
            if os.path.exists(path):
                os.replace(path, old)
            os.replace(new, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Part(NamedTuple):
    """What a growing folder gets at once.

    Attributes:
      files: contents by path.
      rows: columns and row by the table's name.
    """

    files: Mapping[str, bytes]
    rows: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]]


class Growing:
    """Writes files into a folder, each as soon as it is made; see `growing_directory`.

    The record lists a file before it is there. So whenever the process is killed, all
    that it has written is known to be ours.
    """

    def __init__(
        self,
        path: pathlib.Path,
        stack: contextlib.ExitStack,
        earlier: Mapping[str, set[str]] | None = None,
    ) -> None:
        """Takes a folder, what closes the files, and digests of one that continues."""
        self._path, self._stack = path, stack
        self._earlier = earlier or {}
        self._record: io.FileIO | None = None
        self._tables: dict[str, tuple[io.FileIO, Any]] = {}
        if earlier is not None:
            self._record = stack.enter_context((path / _RECORD).open("r+b", 0))
            _cut(self._record, _last_line_end(self._record))

    def add(self, part: Part) -> None:
        """Writes files, and then rows: where there is a row, there are its files."""
        for name, content in part.files.items():
            self.write(name, content)
        self.add_rows(part.rows)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, completely or not at all.

        Args:
          name: path in the folder, in UTF-8.
          content: what the file holds.

        Raises:
          UserError: if somebody else has made such a file, or no file can have the
            name.
        """
        self._note(name, hashlib.sha256(content).hexdigest())
        self._put(name, lambda partial: partial.write_bytes(content))

    def make(self, name: str, write: Callable[[pathlib.Path], Any]) -> None:
        """Writes a file as `write`, by a function that gets the path to write to."""

        def write_and_note(partial: pathlib.Path) -> None:
            write(partial)
            self._note(name, _digest(partial))

        # The first entry of the record would remove the partial file.
        self._begin()
        self._put(name, write_and_note)

    def _put(self, name: str, write: Callable[[pathlib.Path], Any]) -> None:
        path, partial = self._place(name), self._path / _PARTIAL
        try:
            write(partial)
            if os.path.lexists(path) and not self._is_earlier(name, path):
                raise _not_ours(path)
            os.replace(partial, path)
        except OSError as error:
            if error.errno in _NOT_A_NAME:
                raise UserError(
                    f"{path} cannot be written ({error.strerror}); rename the file "
                    "that it is made from."
                ) from error
            raise
        finally:
            partial.unlink(missing_ok=True)

    def add_row(
        self, name: str, columns: Sequence[str], row: Mapping[str, Any]
    ) -> None:
        """Adds a row to a table, which begins with its first row; see `write_csv`.

        Raises:
          UserError: if somebody else has made such a file.
        """
        self.add_rows({name: (columns, row)})

    def add_rows(
        self, rows: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]]
    ) -> None:
        """Adds a row to each of several tables, or to none of them; see `add_row`.

        Only a process that is killed between two writes that follow at once can leave
        the first table a row longer.

        Args:
          rows: columns and row by the table's name.
        """
        added = []
        for name, (columns, row) in rows.items():
            line = _csv_line(map(row.get, columns))
            if name not in self._tables and not self.reopen(name):
                self._note(name, hashlib.sha256().hexdigest())
                try:
                    file = self._stack.enter_context(
                        self._place(name).open("xb", buffering=0)
                    )
                except FileExistsError:
                    raise _not_ours(self._path / name) from None
                self._tables[name] = file, hashlib.sha256()
            file, digest = self._tables[name]
            # Also where an earlier process ended before its first row.
            if not file.tell():
                head = _csv_line(columns)
                self._note(name, hashlib.sha256(head.encode()).hexdigest())
                line = head + line
            digest = digest.copy()
            digest.update(line.encode())
            self._note(name, digest.hexdigest())
            added.append((name, file, digest, line.encode()))
        _append(*((file, line) for _, file, _, line in added))
        self._tables |= {name: (file, digest) for name, file, digest, _ in added}

    @property
    def has_begun(self) -> bool:
        """Whether the folder holds what this process continues or has written."""
        return self._record is not None

    def _place(self, name: str) -> pathlib.Path:
        path = inside(self._path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def reopen(self, name: str) -> bool:
        """Opens a table that an earlier process began, for more rows.

        A row that the process was killed in the midst of is removed.

        Returns:
          Whether there is such a table.

        Raises:
          UserError: if somebody else has changed it.
        """
        path = self._place(name)
        if name not in self._earlier or not path.is_file():
            return False
        file = self._stack.enter_context(path.open("r+b", 0))
        if _digest(path) not in self._earlier[name]:
            _cut(file, _last_line_end(file))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        if digest.hexdigest() not in self._earlier[name]:
            raise UserError(
                f"{path} was changed since mtl_jax wrote it; leave out --resume, and "
                "name another output folder."
            )
        file.seek(0, os.SEEK_END)
        self._tables[name] = file, digest
        return True

    def _is_earlier(self, name: str, path: pathlib.Path) -> bool:
        """Whether a process that this one continues wrote a file."""
        return name in self._earlier and _digest(path) in self._earlier[name]

    def _note(self, name: str, digest: str) -> None:
        """Adds a file to the record; the first one replaces an earlier output."""
        entry = {"files": {name: digest}}
        _append((self._begin(), (json.dumps(entry) + "\n").encode()))

    def _begin(self) -> io.FileIO:
        """Removes an earlier output, once, and returns the record."""
        if self._record is None:
            _check_ours(self._path)
            record = self._path / _RECORD
            for file in _files(self._path).values():
                # The last of all: until then it tells what may be deleted.
                if file != record:
                    file.unlink()
            for place, folders, _ in os.walk(self._path, topdown=False):
                for folder in folders:
                    pathlib.Path(place, folder).rmdir()
            partial = self._path / _PARTIAL
            partial.write_text(json.dumps({"note": _NOTE, "files": {}}) + "\n")
            os.replace(partial, record)
            self._record = self._stack.enter_context(record.open("ab", buffering=0))
        return self._record


@contextlib.contextmanager
def growing_directory(
    path: pathlib.Path,
    used: Collection[pathlib.Path] = (),
    *,
    continues: bool = False,
) -> Iterator[Growing]:
    """Opens a directory whose files are there as soon as each is made.

    They stay, however the process ends. An earlier output is replaced when the first
    of them is made.

    Args:
      path: path of the directory, see `whole_directory`.
      used: files and folders that the directory must neither be nor hold.
      continues: whether an earlier output stays, to be completed. Only files of it that
        are written again are compared with the record.

    Yields:
      What writes to the directory.

    Raises:
      UserError: if `path` may not be replaced, or cannot be written, or another process
        writes there.
    """
    if continues:
        _check_place(path, used)
    else:
        check_replaceable(path, used)
    path = resolved(path)
    is_new = not path.exists()
    with _making(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack, _having_room(path):
            if not stack.enter_context(locked(path)):
                raise UserError(_IN_USE.format(path))
            yield Growing(path, stack, _recorded(path) if continues else None)
    finally:
        if is_new:
            # Nothing has been made.
            with contextlib.suppress(OSError):
                path.rmdir()


def add_to_record(path: pathlib.Path) -> None:
    """Adds a file to the record of its folder, if the folder has one.

    A folder that was written here may then be replaced in spite of the file.
    """
    place = path.parent / _RECORD
    if place.exists():
        with place.open("ab", buffering=0) as file:
            entry = {"files": {escape(path.name): _digest(path)}}
            _append((file, ("\n" + json.dumps(entry) + "\n").encode()))


@contextlib.contextmanager
def _making(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); name another output folder."
        ) from error


@contextlib.contextmanager
def _having_room(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if reason := no_room(error):
            raise UserError(
                f"{path} cannot be written ({reason}); make room there, or name "
                "another output folder."
            ) from error
        raise


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[bool]:
    """Locks a folder during the block; yields False if it is locked already."""
    # The folder itself: a lock's own file would be left in it.
    handle = os.open(folder, os.O_RDONLY)
    try:
        is_ours = True
        # On network file systems without locks, folders are not guarded.
        with contextlib.suppress(OSError):
            is_ours = filelock.lock_descriptor(handle, blocking=False)
        yield is_ours
    finally:
        os.close(handle)


def _append(*lines: tuple[io.FileIO, bytes]) -> None:
    """Appends a line to each of some files, completely or not at all."""
    ends = [(file, os.fstat(file.fileno()).st_size) for file, _ in lines]
    try:
        for file, line in lines:
            while line:
                line = line[file.write(line) :]
    except BaseException:
        for file, end in ends:
            file.truncate(end)
        raise


def _last_line_end(file: io.FileIO) -> int:
    """Where the last complete line of a file ends."""
    file.seek(0)
    return file.readall().rfind(b"\n") + 1


def _cut(file: io.FileIO, end: int) -> None:
    file.truncate(end)
    file.seek(end)


def written(folder: pathlib.Path) -> set[pathlib.Path]:
    """The files that the record of a folder lists, whether or not they are there."""
    return {inside(folder, name) for name in _recorded(folder) or ()}


def _not_ours(path: pathlib.Path) -> UserError:
    return UserError(
        f"{path} is there already, and mtl_jax did not write it; move it away."
    )


def resolved(path: pathlib.Path) -> pathlib.Path:
    """The absolute path of an output, with ~ as the user's folder."""
    # Unlike pathlib's, these functions accept links in a circle and unknown users.
    return pathlib.Path(os.path.realpath(os.path.expanduser(path)))


def _somebody_elses(path: pathlib.Path) -> str:
    """Says why a path is not our own unchanged output; empty if it is."""
    if not path.is_dir():
        return "it is a file"
    found = {n: p for n, p in _files(path).items() if p.name not in _LEFT_BEHIND}
    if not found:
        return ""
    ours = _recorded(path)
    if ours is None:
        return (
            f"{next(iter(found))}, and no {_RECORD} that lists it; earlier versions "
            "left none"
        )
    records = [name for name, file in found.items() if file.name == _RECORD]
    for record in records:
        # A folder inside that was written here has a record of its own.
        inner = _recorded(found[record].parent)
        if inner is not None:
            del found[record]
            prefix = record.removesuffix(_RECORD)
            ours |= {prefix + name: digests for name, digests in inner.items()}
    for name, file in found.items():
        if name not in ours:
            return f"{name}, which mtl_jax did not write"
        if _digest(file) not in ours[name]:
            return f"{name}, which was changed since mtl_jax wrote it"
    return ""


def _recorded(folder: pathlib.Path) -> dict[str, set[str]] | None:
    """Reads the digests of a folder's files; None if it has no record.

    A table that grew has one for each of its rows.
    """
    found, start, decoder = defaultdict[str, set[str]](set), 0, json.JSONDecoder()
    try:
        text = (folder / _RECORD).read_text("utf-8")
        while start < len(text):
            value, end = decoder.raw_decode(text, start)
            for name, digest in value["files"].items():
                found[name].add(digest)
            while text[end : end + 1].isspace():
                end += 1
            start = end
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A killed process may leave the last entry torn. Its file is not there then.
        return found if start else None
    return found


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Finds files and links below a folder, by their path relative to it."""
    found = []
    for place, folders, names in os.walk(folder, onerror=_fail):
        paths = [pathlib.Path(place, name) for name in (*folders, *names)]
        found += [path for path in paths if path.is_symlink() or not path.is_dir()]
    return {escape(p.relative_to(folder).as_posix()): p for p in sorted(found)}


def _fail(error: OSError) -> None:
    # What cannot be listed is not known to be empty.
    raise error


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
