"""From a TFDS data set on disk to arrays: a `Split` has the records of one split."""

from __future__ import annotations

import collections
import contextlib
import copy
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import numpy.typing as npt
from etils import epy

from mtl_jax import machine
from mtl_jax.annotations import ANNOTATIONS, LABELS
from mtl_jax.data import geometry, lookahead, schema
from mtl_jax.data.field_of_view import Shape
from mtl_jax.data.folds import Fold
from mtl_jax.errors import UserError, no_access

# Prediction on photographs needs none of them, and importing them takes 0.3 s.
with epy.lazy_imports():
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
        if len(self) * side * side * 5 < MEMORY_SHARE * machine.free_memory():
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

    def whole(self) -> dict[str, np.ndarray]:
        """Returns all records, as `take` does.

        Raises:
          UserError: if they do not fit into memory.
        """
        if self._decoded is None:
            raise UserError(
                f"{self.name} does not fit into the memory as a whole; set "
                "config.data.memory to 'host'."
            )
        return self.take(range(len(self)))

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
