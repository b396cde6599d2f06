"""From a TFDS data set on disk to batches of arrays.

A `Split` returns the records at any indices as one batch. Grain shuffles
indices rather than images, so that a few numbers are the position in the shuffled
stream, and a checkpoint can hold them.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import hashlib
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from etils import epy

from mtl_jax import machine
from mtl_jax.annotations import ANNOTATIONS, LABELS
from mtl_jax.data import geometry, lookahead, schema
from mtl_jax.data.field_of_view import Shape
from mtl_jax.data.folds import Fold
from mtl_jax.errors import UserError, no_access
from mtl_jax.tasks import Task

# Prediction on photographs needs none of them, and importing them takes 0.3 s.
with epy.lazy_imports():
    import grain
    import tensorflow_datasets as tfds

    from mtl_jax.data import building

TRAINING_KEYS = (
    "image",
    "disc_mask",
    "cup_mask",
    "fovea_xy",
    "glaucoma",
    "has_label",
)

# Name of the photographs whose label is 1, in a table.
_POSITIVE = "with glaucoma"

# The splits that cross-validation merges and divides anew.
TRAINING_SPLITS = ("train", "validation")

# Limits of a container, a scheduler or systemd, in Linux: the groups of this process,
# and the folder of all groups.
GROUPS = pathlib.Path("/proc/self/cgroup")
CGROUP = pathlib.Path("/sys/fs/cgroup")
# By the controllers that `GROUPS` names, of version 2 and 1: the folder of the groups
# in `CGROUP`, the file of a limit, and what `memory.stat` calls memory in use.
_LIMITS = {
    "": ("", "memory.max", "anon"),
    "memory": ("memory", "memory.limit_in_bytes", "total_rss"),
}

# The decoded images of a split may take this share of the free memory.
MEMORY_SHARE = 0.5


def open_dataset(data_dir: str, dataset: str) -> tfds.core.DatasetBuilder:
    """Opens the data set that `scripts/prepare_data.py` built.

    Args:
      data_dir: directory of all TFDS data sets.
      dataset: name and config, such as `fundus_folder/mine-256px`.

    Raises:
      UserError: if there is no such data set. The message names those that exist.
    """
    root = pathlib.Path(data_dir).expanduser()
    built = f"{building.LocalBuilder.VERSION}/dataset_info.json"
    version_dir = (root / dataset / built).parent
    # Spelt in another way, such as with a slash at its end, the data set of a run would
    # not be known as its own.
    is_name = dataset == pathlib.PurePath(dataset).as_posix()
    if not is_name or not (root / dataset / built).exists():
        there = sorted(
            str(info.parent.parent.relative_to(root))
            for info in root.glob(f"*/*/{built}")
        )
        raise UserError(
            f"There is no data set {dataset!r} in {root} (there "
            + (f"are {', '.join(there)}" if there else "is none at all")
            + "); build it with scripts/prepare_data.py, or name another."
        )
    with building.quiet_tfds(), _readable(version_dir):
        return schema.open_built(version_dir)


def image_size(builder: tfds.core.DatasetBuilder) -> int:
    """Returns the pixels a side of the data set's model images."""
    return builder.info.features["image"].shape[0]


def shape(builder: tfds.core.DatasetBuilder) -> Shape:
    """Returns what the data set's model images show of the photographs."""
    return builder.info.metadata["shape"]


def fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """Returns the SHA-256 of a data set's records.

    The same program makes the same records of the same photographs and annotations.
    Their files differ from build to build: protobuf writes the fields of a record in
    the order of a hash that each process seeds anew.

    Raises:
      UserError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    with building.quiet_tfds(), _readable(pathlib.Path(builder.data_dir)):
        for split in sorted(builder.info.splits):
            source = _source(builder, split)
            digest.update(f"{split} {len(source)}".encode())
            for index in range(len(source)):
                for key, value in sorted(source[index].items()):
                    is_encoded = isinstance(value, bytes)
                    content = value if is_encoded else np.asarray(value).tobytes()
                    digest.update(f"{key} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _source(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[dict[str, Any]]:
    """The records of a split, their pictures as encoded."""
    decoders = {key: tfds.decode.SkipDecoding() for key in schema.IMAGES}
    return builder.as_data_source(split, decoders=decoders)


def describe(version_dir: pathlib.Path) -> str:
    """Tells what a built data set holds, and how to train on it."""
    with building.quiet_tfds():
        info = schema.open_built(version_dir).info
    counts = ", ".join(f"{n} {split.num_examples}" for n, split in info.splits.items())
    config_dir = version_dir.parent
    return (
        f"{version_dir}: {counts} images\n"
        f"train on it with --config.data.data_dir={config_dir.parent.parent} "
        f"--config.data.dataset={config_dir.parent.name}/{config_dir.name}"
    )


def tally(version_dir: pathlib.Path) -> dict[str, dict[str, collections.Counter[str]]]:
    """Counts what a built data set holds, without decoding its images.

    Returns:
      By split and kind (`labels`, `source`, `pixels`, `field of view`) the number of
      photographs with each value. `labels` also has all `images`, and those `with
      glaucoma`. A field of view is the side of what the model image shows, in long
      sides of the photograph, rounded to tenths.
    """
    with building.quiet_tfds():
        builder = schema.open_built(version_dir)
        found: dict[str, dict[str, collections.Counter[str]]] = {}
        for split in builder.info.splits:
            counts = found[split] = collections.defaultdict(collections.Counter)
            counts["labels"].update(dict.fromkeys(("images", *LABELS, _POSITIVE), 0))
            for record in _source(builder, split):
                frame = _frame(record)
                there = dict(zip(LABELS, record["has_label"], strict=True))
                labels = ["images", *(name for name in LABELS if there[name])]
                if there["glaucoma"] and record["glaucoma"]:
                    labels.append(_POSITIVE)
                counts["labels"].update(labels)
                counts["source"][record["source"].decode()] += 1
                height, width = frame.native_size
                counts["pixels"][f"{width} x {height}"] += 1
                share = max(frame.width, frame.height) / max(height, width)
                counts["field of view"][f"{share:.1f}"] += 1
    return found


def check_split(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Refuses a split that a data set does not have.

    Raises:
      UserError: with the names of its splits.
    """
    if split not in builder.info.splits:
        raise UserError(
            f"{builder.info.full_name} has no split {split!r}; it has "
            f"{', '.join(builder.info.splits)}."
        )


def open_split(
    builder: tfds.core.DatasetBuilder,
    split: str,
    fold: Fold | None = None,
    pixel_origin: geometry.PixelOrigin = "centre",
) -> Split:
    """Opens a split of a data set.

    Args:
      builder: builder of the data set.
      split: `train`, `validation` or `test`.
      fold: division into training and validation; None for the data set's splits.
      pixel_origin: convention of foveas at model size, see `geometry.rescale_xy`.

    Raises:
      UserError: if the data set has no such split.
    """
    if fold is None or split not in TRAINING_SPLITS:
        check_split(builder, split)
        return Split(builder, split, pixel_origin)
    merged = _merged(builder, pixel_origin)
    return _divide(merged, fold)[TRAINING_SPLITS.index(split)]


def open_training_splits(
    builder: tfds.core.DatasetBuilder,
    fold: Fold | None = None,
    pixel_origin: geometry.PixelOrigin = "centre",
) -> tuple[Split, Split | None]:
    """Opens the training and validation splits of a run; see `open_split`.

    Returns:
      Both splits. The second is None if there is no fold and the data set has no
      validation split. The splits of a fold share the decoded images.
    """
    if fold is not None:
        return _divide(_merged(builder, pixel_origin), fold)
    train = open_split(builder, "train", None, pixel_origin)
    if "validation" not in builder.info.splits:
        return train, None
    return train, open_split(builder, "validation", None, pixel_origin)


def _merged(
    builder: tfds.core.DatasetBuilder, pixel_origin: geometry.PixelOrigin
) -> Split:
    """Opens the splits that folds divide as one."""
    there = [split for split in TRAINING_SPLITS if split in builder.info.splits]
    if not there:
        raise UserError(f"{builder.info.full_name} has no images to make folds of.")
    return Split(builder, "+".join(there), pixel_origin)


def _divide(merged: Split, fold: Fold) -> tuple[Split, Split]:
    """Divides the merged splits into training and validation."""
    if len(merged) < fold.num_folds:
        raise UserError(
            f"{merged.name} has {len(merged)} images, too few for {fold.num_folds} "
            "folds; lower config.data.num_folds."
        )
    parts = fold.divide(merged.image_ids(), merged.diagnoses(), merged.patients())
    name = f"fold {fold.number} of {fold.num_folds}"
    train, validation = (
        merged.subset(indices, f"{merged.name}, {name}, {split}")
        for split, indices in zip(TRAINING_SPLITS, parts, strict=True)
    )
    return train, validation


class Split:
    """The records of one split, decoded once if they fit into memory.

    Attributes:
      name: names data set and split in messages.
      shape: what the model images show of their photographs.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        pixel_origin: geometry.PixelOrigin = "centre",
    ) -> None:
        """Opens a split, or several joined by "+"; see `open_split`."""
        self._pixel_origin = pixel_origin
        self._directory = pathlib.Path(builder.data_dir)
        self.name = f"{builder.info.full_name}, split {split}"
        self.shape = shape(builder)
        self._extra = builder.info.metadata.get("extra", {})
        with building.quiet_tfds(), _readable(self._directory):
            self._source = _source(builder, split)
        # The rows of the source that are this split's records.
        self._rows = np.arange(len(self._source))
        self._decoded: dict[str, np.ndarray] | None = None
        side = image_size(builder)
        if len(self) * side * side * 5 < MEMORY_SHARE * _free_memory():
            self._decoded = self._decode(self._rows)

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._rows)

    def subset(self, indices: npt.ArrayLike, name: str) -> Split:
        """Returns the records at `indices` as a split; it shares the decoded images."""
        subset = copy.copy(self)
        subset.name = name
        subset._rows = self._rows[np.asarray(indices, int)]
        return subset

    def from_files(self) -> Split:
        """Returns the same records, decoded anew whenever they are taken."""
        streamed = copy.copy(self)
        streamed._decoded = None
        return streamed

    def take(self, indices: npt.ArrayLike) -> dict[str, np.ndarray]:
        """Returns the records at `indices` as a batch with the keys `TRAINING_KEYS`."""
        rows = self._rows[np.asarray(indices, int)]
        if self._decoded is not None:
            return {key: values[rows] for key, values in self._decoded.items()}
        return self._decode(rows)

    def image_ids(self) -> list[str]:
        """Returns the names of all images."""
        return [self._record(i)["image_id"].decode() for i in range(len(self))]

    def digests(self) -> list[str]:
        """Returns 16 digits of each model image's pixels, which know it again."""

        def digest(index: int) -> str:
            if self._decoded is not None:
                pixels = self._decoded["image"][self._rows[index]]
            else:
                pixels = schema.decode_png(self._record(index)["image"])
            return hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()

        with _readable(self._directory), futures.ThreadPoolExecutor() as threads:
            return list(threads.map(digest, range(len(self))))

    def patients(self) -> list[str]:
        """Returns the patients of all images; empty where they are unknown."""
        return [self._record(i)["patient"].decode() for i in range(len(self))]

    def diagnoses(self) -> list[int]:
        """Returns 1 for glaucoma, 0 for healthy, -1 for images without that label."""
        records = (self._record(i) for i in range(len(self)))
        column = LABELS.index("glaucoma")
        return [int(r["glaucoma"]) if r["has_label"][column] else -1 for r in records]

    def has_label(self) -> np.ndarray:
        """Returns which annotations all images have, bool [images, 4]."""
        if self._decoded is not None:
            return self._decoded["has_label"][self._rows]
        return np.stack([self._record(i)["has_label"] for i in range(len(self))])

    def details(self, index: int) -> dict[str, Any]:
        """Describes the photograph of one record.

        Returns:
          `image_id`, `file_name` and `source` (str), `native_size` (height, width),
          `frame`, the `geometry.Frame` that its model image shows, and `extra`, the
          text of its manifest's other columns by name.
        """
        record = self._record(index)
        frame = _frame(record)
        image_id = record["image_id"].decode()
        return {
            "image_id": image_id,
            "file_name": record["file_name"].decode(),
            "source": record["source"].decode(),
            "native_size": frame.native_size,
            "frame": frame,
            "extra": self._extra.get(image_id, {}),
        }

    def native(self, index: int, labels: Iterable[str]) -> dict[str, np.ndarray]:
        """Reads annotations of one record at native size.

        Args:
          index: of the record.
          labels: some of `annotations.LABELS`; the result has their keys. Decoding a
            mask takes as long as resizing a photograph.

        Returns:
          Masks uint8 [h, w], the fovea float64 [2], the diagnosis.
        """
        record = self._record(index)
        found = {}
        for key in (ANNOTATIONS[label] for label in labels):
            name = f"native_{key}"
            value = record.get(name, record[key])
            is_mask = name in schema.NATIVE_MASKS
            found[key] = schema.decode_png(value) if is_mask else value
        return found

    def _record(self, index: int) -> dict[str, Any]:
        return self._source[int(self._rows[index])]

    def _decode(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        def decode(row: int) -> dict[str, Any]:
            record = self._source[int(row)]
            values = {
                key: schema.decode_png(record[key])
                if key in schema.IMAGES
                else record[key]
                for key in TRAINING_KEYS
            }
            # Records hold the point in our own convention.
            if self._pixel_origin != "centre":
                values["fovea_xy"] = geometry.xy_to_model(
                    record["native_fovea_xy"],
                    _frame(record),
                    values["image"].shape[:2],
                    self._pixel_origin,
                ).astype(np.float32)
            return values

        # Zlib releases the interpreter lock.
        with _readable(self._directory), futures.ThreadPoolExecutor() as threads:
            ahead = 2 * machine.num_cores()
            waiting = lookahead.in_order(threads, decode, rows, ahead)
            records = (done.result() for _, done in waiting)
            first = {key: np.asarray(value) for key, value in next(records).items()}
            # Filled one by one, so that no record is in memory twice.
            batch = {
                key: np.empty((len(rows), *value.shape), value.dtype)
                for key, value in first.items()
            }
            for place, record in enumerate(itertools.chain([first], records)):
                for key, values in batch.items():
                    values[place] = record[key]
        # TFDS returns scalars as Python numbers.
        return {**batch, "glaucoma": batch["glaucoma"].astype(np.float32)}


def _frame(record: dict[str, Any]) -> geometry.Frame:
    rows, columns = map(int, record["native_size"])
    left, top, width, height = map(int, record["frame"])
    return geometry.Frame(left, top, width, height, (rows, columns))


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Counts the full batches in one pass over a split.

    Raises:
      UserError: if the split is smaller than one batch.
    """
    if len(split) < batch_size:
        raise UserError(
            f"{split.name} has {len(split)} images, fewer than one batch of "
            f"{batch_size}; lower config.batch_size."
        )
    return len(split) // batch_size


def training_batches(
    split: Split, batch_size: int, seed: int, places_only: bool = False
) -> grain.DatasetIterator:
    """Returns endless batches, shuffled anew in every epoch.

    The remainder of an epoch is dropped. The order depends only on seed and epoch. Each
    process receives its share of every batch. The iterator's `get_state` and
    `set_state` save and restore its position.

    Args:
      split: the training split.
      batch_size: images of one batch, over all processes.
      seed: seed of the order.
      places_only: whether a batch has nothing but the places of its examples in the
        split, int32 [share] by the key `index`.
    """
    share = batch_size // jax.process_count()
    start = share * jax.process_index()
    take = _taking(split, places_only)
    return iter(
        grain.MapDataset.range(len(split))
        .seed(seed)
        .shuffle()
        .batch(batch_size, drop_remainder=True)
        .repeat()
        .map(lambda indices: take(indices[start : start + share]))
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )


def _taking(
    split: Split, places_only: bool
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    if places_only:
        return lambda indices: {"index": indices.astype(np.int32)}
    return split.take


def annotated_images(split: Split, tasks: Sequence[Task]) -> list[np.ndarray]:
    """Finds the images of a split that each task can learn from.

    Returns:
      The indices of the images with all labels of the task, for each task.
    """
    labels = {"has_label": jnp.asarray(split.has_label())}
    return [np.flatnonzero(task.is_labelled(labels)) for task in tasks]


def per_task_batches(
    split: Split,
    tasks: Sequence[Task],
    batch_size: int,
    seed: int,
    places_only: bool = False,
) -> grain.DatasetIterator:
    """Returns endless batches with examples of each task's own.

    The arrays have a task axis after the axis of examples: the images are
    [B, N, H, W, 3]. Each task passes through the images annotated for it, shuffled anew
    in every pass. A batch may reach from one pass into the next, so a task needs no
    more than one image. The order of a task depends only on the seed and its name, not
    on the other tasks. Shares and positions are as in `training_batches`.

    Args:
      split: the training split.
      tasks: in the order of the task axis, each with an image annotated for it.
      batch_size: images of each task in one batch, over all processes.
      seed: seed of the order.
      places_only: as for `training_batches`.
    """
    share = batch_size // jax.process_count()
    start = share * jax.process_index()
    images = annotated_images(split, tasks)
    take_records = _taking(split, places_only)

    def take(step: int) -> dict[str, np.ndarray]:
        places = step * batch_size + start + np.arange(share)
        indices = np.stack(
            [
                _draw(mine, places, (seed, *task.name.encode()))
                for task, mine in zip(tasks, images, strict=True)
            ],
            axis=1,
        )
        batch = take_records(indices.ravel())
        return {k: v.reshape(*indices.shape, *v.shape[1:]) for k, v in batch.items()}

    return iter(
        grain.MapDataset.range(sys.maxsize)
        .map(take)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )


def _draw(images: np.ndarray, places: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """Returns the images at some places of endless passes, each in its own order.

    Grain's shuffling takes 5 ms for each of a dozen images, and less for more.
    """
    passes, within = np.divmod(places, len(images))
    orders = {
        number: np.random.default_rng((number, *seed)).permutation(images)
        for number in set(passes.tolist())
    }
    return np.array([orders[n][i] for n, i in zip(passes, within, strict=True)])


def evaluation_batches(
    split: Split, batch_size: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Passes once over a split in order.

    Copies without labels fill up the last batch.

    Yields:
      The indices of the batch's records, without the copies; and the batch with the
      additional key `weight` [B], 1 for a record and 0 for a copy.
    """
    for start in range(0, len(split), batch_size):
        indices = list(range(start, min(start + batch_size, len(split))))
        padding = batch_size - len(indices)
        batch = split.take(indices + indices[-1:] * padding)
        weight = np.arange(batch_size) < len(indices)
        yield (
            indices,
            {
                **batch,
                "has_label": batch["has_label"] & weight[:, None],
                "weight": weight.astype(np.float32),
            },
        )


@contextlib.contextmanager
def _readable(directory: pathlib.Path) -> Iterator[None]:
    """Turns the exceptions of readers on a data set into a `UserError`.

    It is called damaged only if each of its files can be read.
    """
    try:
        yield
    except (UserError, MemoryError, ImportError):
        raise
    # TFDS, protobuf, array_record and Pillow each raise their own exceptions.
    except Exception as error:
        if reason := no_access(error) or _unreadable(directory):
            raise UserError(
                f"The data set {directory} cannot be read ({reason}); that says "
                "nothing of its content, so see to the cause, or name another data set."
            ) from error
        raise UserError(
            f"The data set {directory} is damaged ({type(error).__name__}); delete this"
            " folder and build it again."
        ) from error


def _unreadable(directory: pathlib.Path) -> str | None:
    """Reads all files of a folder; says why one cannot be read. Readers hide it."""
    path = directory
    try:
        for path in [directory / name for name in sorted(os.listdir(directory))]:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")
    except OSError as error:
        reason = no_access(error)
        return reason and f"{reason}: {path}"
    return None


def _free_memory() -> int:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 4 << 30
    return min([free, *_free_of_groups()])


def _free_of_groups() -> Iterator[int]:
    """Yields what is left of each limit on this process, or on a group around it."""
    with contextlib.suppress(OSError):
        for line in GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in _LIMITS:
                continue
            folder, limit, name = _LIMITS[controllers]
            group = pathlib.PurePath(path.lstrip("/"))
            for place in (CGROUP / folder / x for x in (group, *group.parents)):
                # Without a limit there is no number, and a container does not see the
                # groups around it.
                with contextlib.suppress(OSError, ValueError, KeyError):
                    lines = (place / "memory.stat").read_text().splitlines()
                    used = dict(map(str.split, lines))[name]
                    yield int((place / limit).read_text()) - int(used)
