"""Parallel work and atomic builds for all TFDS builders of this package.

TFDS' own output is hidden; each pass over the images shows one progress bar.
"""

import contextlib
import io
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, TypeVar

import filelock
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from tensorflow_datasets.core.utils import tqdm_utils

from mtl_jax import machine
from mtl_jax.data import images, lookahead, schema
from mtl_jax.data.field_of_view import Shape
from mtl_jax.errors import UserError, check_access, no_room

# With fewer items, starting processes takes longer than they save.
PROCESSES_FROM = 32

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of all builders here: they download nothing and write the same record."""

    VERSION = tfds.core.Version("3.0.0")
    RELEASE_NOTES = {
        "1.0.0": "First version.",
        "2.0.0": "The fovea in native pixels is float64.",
        "3.0.0": "What the model image shows of the photograph.",
    }

    # Otherwise TFDS 4.9.10 looks for download checksums beside the code by means of
    # importlib_resources, a package that it does not install.
    url_infos = None


def config_name(size_and_more: str, shape: Shape, default: Shape) -> str:
    """Adds the shape to a data set's name if it is not the default of its kind."""
    return size_and_more if shape == default else f"{size_and_more}-{shape}"


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Hides TFDS' log, progress bars and prints; errors and our own bars still show."""
    verbosity = logging.get_verbosity()
    bars = getattr(tqdm_utils, "_active", True)
    logging.set_verbosity(logging.ERROR)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(bars)
        logging.set_verbosity(verbosity)


def prepare(builder: tfds.core.DatasetBuilder) -> pathlib.Path:
    """Builds a data set into its version directory, completely or not at all.

    TFDS writes to a sibling directory `incomplete.*` and renames it at the end. What a
    killed build left there is deleted here. If several processes build the same data
    set at once, one builds it and the others wait.

    Args:
      builder: builder with a `data_dir`, whose examples need no download.

    Returns:
      The version directory.

    Raises:
      UserError: if the directory cannot be written.
    """
    version_dir = pathlib.Path(builder.data_dir)
    try:
        version_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{version_dir.parent} cannot be created ({error.strerror}); name another"
            " data directory."
        ) from error
    with _locked(version_dir.parent), tempfile.TemporaryDirectory() as downloads:
        for stale in version_dir.parent.glob(f"incomplete.*_{version_dir.name}"):
            shutil.rmtree(stale)
        try:
            with quiet_tfds():
                builder.download_and_prepare(
                    download_dir=downloads, file_format="array_record"
                )
        # array_record raises RuntimeError where a disk is full.
        except (OSError, RuntimeError) as error:
            if (reason := no_room(error)) is None:
                raise
            raise UserError(
                f"{version_dir.parent} cannot be written ({reason}); make room there, "
                "or name another data directory."
            ) from error
    return version_dir


def read_metadata(version_dir: pathlib.Path, *keys: str) -> dict[str, Any]:
    """Reads the metadata that a builder stored with its data set.

    Args:
      version_dir: version directory of the data set.
      *keys: keys that the metadata must have.

    Raises:
      UserError: if there is no complete data set.
    """
    try:
        metadata = schema.open_built(version_dir).info.metadata
        return {**metadata, **{key: metadata[key] for key in keys}}
    except (OSError, KeyError, ValueError, TypeError) as error:
        check_access(version_dir, error)
        raise UserError(
            f"{version_dir} is not a complete data set; delete this folder and build"
            " again."
        ) from None


def count_conversion(builder: tfds.core.DatasetBuilder, conversion: str) -> None:
    """Counts what was converted to read a photograph, in the data set's metadata.

    Workers return the conversion with the record, since they share no memory.

    Args:
      builder: of a data set whose metadata has a dict `conversions`.
      conversion: see `images.Photograph`; empty if there was none.
    """
    if conversion:
        counts = builder.info.metadata["conversions"]
        counts[conversion] = counts.get(conversion, 0) + 1


def say_conversions(metadata: dict[str, Any]) -> None:
    """Prints to stderr what was converted when a data set was built.

    Data sets of an earlier program say nothing: it refused what is now converted.
    """
    for sentence in images.conversion_sentences(metadata.get("conversions", {})):
        print(f"note: {sentence}", file=sys.stderr)


def parallel_map(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    description: str,
    *,
    processes: bool,
) -> Iterator[_Result]:
    """Applies a function to items on all cores, with a progress bar on stderr.

    Args:
      function: function of one item. With processes it must be importable by name, or
        a `functools.partial` of such a function.
      items: the items.
      description: text before the bar.
      processes: True if the function holds Python's interpreter lock, so that threads
        would wait for each other. Few items are always given to threads. Processes are
        spawned, since forking a process in which JAX runs may hang. A program must
        therefore guard its entry by `if __name__ == "__main__"`.

    Yields:
      The results, in the order of the items.
    """
    workers = max(1, min(machine.num_cores(), len(items)))
    if processes and len(items) >= PROCESSES_FROM:
        executor = futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _start_worker
        )
    else:
        executor = futures.ThreadPoolExecutor(workers)
    with executor, tqdm.tqdm(total=len(items), desc=description, mininterval=1) as bar:
        # Records are large, so only a few may wait for a slow consumer.
        for _, done in lookahead.in_order(executor, function, items, 2 * workers):
            result = done.result()
            bar.update()
            yield result


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
    """Waits until no other process is in this block for the same directory."""
    # The directory itself: a lock's own file would be left in it, and could not be made
    # where a complete data set may only be read.
    handle = os.open(directory, os.O_RDONLY)
    try:
        # On network file systems without locks, builds are not guarded.
        with contextlib.suppress(OSError):
            filelock.lock_descriptor(handle)
        yield
    finally:
        os.close(handle)


def _start_worker() -> None:
    """Makes a worker ignore Ctrl-C and end when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
