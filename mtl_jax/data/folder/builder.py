"""A TFDS data set of photographs from one or several sources.

A source is a folder with a CSV manifest, or a public data set as it is unpacked.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from mtl_jax.data import building, images, schema, sources
from mtl_jax.data.field_of_view import Shape
from mtl_jax.data.folder import manifest as manifests
from mtl_jax.data.sources.checks import KINDS, check
from mtl_jax.data.sources.rows import Contents, Row, listed, read_masks
from mtl_jax.errors import UserError

_HINT = "\nComplete the files, or build with partial labels by --allow_missing."


@dataclasses.dataclass(eq=False, kw_only=True)
class FundusFolderConfig(tfds.core.BuilderConfig):
    """Photographs and image size of a data set.

    Attributes:
      name: of the data set and its size.
      image_size: pixels a side of the model image.
      shape: what it shows of the photograph.
      rows: the photographs.
      fingerprint: hash of the contents of tables and files.
    """

    name: str
    image_size: int
    shape: Shape
    rows: list[Row] = dataclasses.field(default_factory=list)
    fingerprint: str = ""


class FundusFolder(building.LocalBuilder):
    """Builder for rows that `check` has accepted."""

    name = "fundus_folder"

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description="Colour fundus photographs with the annotations of their "
            "sources.",
            features=schema.features(config.image_size),
            metadata=tfds.core.MetadataDict(
                fingerprint=config.fingerprint,
                shape=config.shape,
                # Not in the records, so that these are the same with any columns.
                extra={r.image_id: dict(r.extra) for r in config.rows if r.extra},
                # Numbers of photographs by `images.Photograph.conversion`.
                conversions={},
            ),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        rows = self.builder_config.rows
        by_split = {
            name: [r for r in rows if r.split == name] for name in schema.SPLITS
        }
        return {
            name: self._generate_examples(name, members)
            for name, members in by_split.items()
            if members
        }

    def _generate_examples(
        self, split: str, rows: list[Row]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        make_record = functools.partial(
            record_of, image_size=config.image_size, shape=config.shape
        )
        records = building.parallel_map(
            make_record, rows, f"building {split}", processes=True
        )
        for row, (record, conversion) in zip(rows, records, strict=True):
            building.count_conversion(self, conversion)
            yield row.image_id, record


def record_of(row: Row, image_size: int, shape: Shape) -> tuple[dict[str, Any], str]:
    """Makes the record of one row; see `schema.encode_record`.

    Returns:
      The record; and what was converted to read the photograph, see
      `images.Photograph`.
    """
    photograph = images.open_photograph(row.image)
    size = (photograph.picture.height, photograph.picture.width)
    disc_mask, cup_mask = read_masks(row, size)
    record = schema.encode_record(
        row.image_id,
        photograph.picture,
        image_size,
        shape,
        disc_mask=disc_mask,
        cup_mask=cup_mask,
        fovea_xy=row.fovea_xy,
        glaucoma=row.glaucoma,
        file_name=row.image.name,
        source=row.source,
        patient=row.patient,
        eye=row.eye,
    )
    return record, photograph.conversion


def build(
    data_dir: images.PathLike,
    source: images.PathLike,
    *,
    manifest: images.PathLike | None = None,
    image_size: int = 256,
    shape: Shape = "fov",
    name: str | None = None,
    allow_missing: bool = False,
    accept: Sequence[str] = (),
) -> pathlib.Path:
    """Builds the data set of one or several sources, unless it is built already.

    Every file is checked before anything is written. Large data sets are built by
    spawned processes; see `building.parallel_map`.

    Args:
      data_dir: directory of all TFDS data sets.
      source: folder with a manifest, whose relative paths start from it. Or sources
        with their names, separated by commas: `NAME:FOLDER`, where NAME is one of
        `sources.LAYOUTS`, or any other name of a folder with a manifest.
      manifest: CSV file with the columns `rows.COLUMNS`; by default `manifest.csv` in
        `source`. Only with one source.
      image_size: pixels a side of the model image, a multiple of 16, at least 32.
      shape: what it shows of a photograph, see `field_of_view.frame_of`.
      name: name of the data set, by default that of the first source's folder.
        Characters other than ASCII letters, digits and `_` become `_`.
      allow_missing: whether to build if a public data set lacks annotations.
      accept: kinds of unusual annotations that are meant, of `checks.KINDS`.

    Returns:
      The version directory, for `tfds.builder_from_directory`.

    Raises:
      UserError: if a table or a file has problems (all are listed), if a data set of
        this name was built from other contents, or if an argument is invalid.
    """
    named = _named_sources(str(source))
    schema.check_image_size(image_size)
    if unknown := [kind for kind in accept if kind not in KINDS]:
        raise UserError(
            f"--accept={unknown[0]} is no kind of annotation; the kinds are "
            f"{', '.join(KINDS)}."
        )
    name = re.sub(r"[^A-Za-z0-9_]", "_", name or named[0][1].resolve().name)
    if not name:
        raise UserError(f"{named[0][1]} has no name for the data set; give a name.")
    if manifest is not None and len(named) > 1:
        raise UserError(
            "--manifest names the table of one source; put a manifest.csv into the "
            "folder of each."
        )
    found = [_read(kind, folder, manifest) for kind, folder in named]
    rows = _joined(named, found)
    config = FundusFolderConfig(
        name=building.config_name(f"{name}-{image_size}px", shape, default="fov"),
        image_size=image_size,
        shape=shape,
        rows=rows,
        fingerprint=_fingerprint(rows),
    )
    if any(kind for kind, _ in named):
        print(sources.found(rows), flush=True)
    for contents in found:
        for note in contents.notes:
            print(f"note: {contents.name}: {note}", file=sys.stderr)
        if contents.missing:
            text = listed(contents.name, contents.missing)
            if not allow_missing:
                raise UserError(text + _HINT)
            print(text, file=sys.stderr)
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
    version_dir = data_dir / FundusFolder.name / config.name / str(FundusFolder.VERSION)
    if not version_dir.exists():
        check(found, frozenset(accept))
        with building.quiet_tfds():
            builder = FundusFolder(
                data_dir=data_dir, config=config, file_format="array_record"
            )
        version_dir = building.prepare(builder)
    metadata = _metadata(version_dir, config, str(source))
    building.say_conversions(metadata)
    return version_dir


def _named_sources(text: str) -> list[tuple[str, pathlib.Path]]:
    """Reads `NAME:FOLDER,…`, or a bare folder, whose name is then empty.

    Raises:
      UserError: if a folder does not exist, or a name is given twice.
    """
    # A folder's own name may have commas and colons.
    parts = [text] if os.path.isdir(os.path.expanduser(text)) else text.split(",")
    named = []
    for part in parts:
        match = re.fullmatch(r"([\w-]+):(.+)", part)
        kind, folder = match.groups() if match else ("", part)
        path = pathlib.Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise UserError(f"{path} is not a directory; name the one with the images.")
        named.append((kind, path))
    kinds = [kind or path.name for kind, path in named]
    if len(set(kinds)) < len(kinds):
        raise UserError(
            f"Two sources of {text} have one name; name each like NAME:FOLDER."
        )
    if "smdg" in kinds and (doubled := sorted({*kinds} & {*sources.IN_SMDG})):
        raise UserError(
            f"smdg has the photographs of {', '.join(doubled)} too; leave one of them "
            "out, so that none is in training and in test."
        )
    return named


def _read(
    kind: str, folder: pathlib.Path, manifest: images.PathLike | None
) -> Contents:
    """Reads one source, see `build`."""
    if kind in sources.LAYOUTS:
        return sources.read(kind, folder)
    path = pathlib.Path(manifest or folder / "manifest.csv").expanduser().absolute()
    if kind and not path.is_file():
        raise UserError(
            f"{folder} has no manifest.csv, and {kind!r} is none of the public sets "
            f"that are known by their files ({', '.join(sources.LAYOUTS)})."
        )
    return manifests.read(path, folder)


def _joined(
    named: Sequence[tuple[str, pathlib.Path]], found: Sequence[Contents]
) -> list[Row]:
    """Joins the rows of all sources. Patients of two sources are never the same.

    A folder that is alone, without a name, is a source without one. It may move.

    Raises:
      UserError: if two sources have the same `image_id`.
    """
    rows: list[Row] = []
    first: dict[str, Contents] = {}
    for (kind, folder), contents in zip(named, found, strict=True):
        is_named = len(found) > 1 or any(row.source for row in contents.rows)
        name = kind or (folder.name if is_named else "")
        for row in contents.rows:
            other = first.setdefault(row.image_id, contents)
            if other is not contents:
                raise UserError(
                    f"{other.name} and {contents.name} both have an image_id "
                    f"{row.image_id}; give one of them another name."
                )
            patient = row.patient
            if patient and len(found) > 1:
                patient = f"{name}/{patient}"
            source = row.source or name
            rows.append(dataclasses.replace(row, patient=patient, source=source))
    return rows


def _fingerprint(rows: Sequence[Row]) -> str:
    """Hashes what the tables say, and the files' sizes and modification times.

    It does not change if the folder moves.
    """
    digest = hashlib.sha256()
    for row in rows:
        said = (row.image_id, row.fovea_xy, row.glaucoma, row.split, row.patient)
        said += (row.eye, row.source, row.image.name, *row.extra)
        said += tuple((key, m.reading) for key, m in row.mask_files.items())
        digest.update(repr(said).encode())
        for path in row.files:
            digest.update(_stamp(path).encode())
    return digest.hexdigest()


def _stamp(path: pathlib.Path) -> str:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return "absent;"
    return f"{stat.st_size} {stat.st_mtime_ns};"


def _metadata(
    version_dir: pathlib.Path, config: FundusFolderConfig, source: str
) -> dict[str, Any]:
    """Reads the metadata of a data set; refuses one built from other contents."""
    built = building.read_metadata(version_dir, "fingerprint")
    if built["fingerprint"] != config.fingerprint:
        raise UserError(
            f"{version_dir} was built from other contents of {source}, its tables and "
            "files; give another name or delete this folder."
        )
    return built
