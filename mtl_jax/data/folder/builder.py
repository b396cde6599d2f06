"""A TFDS data set of a researcher's own photographs, listed in a CSV manifest."""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from mtl_jax.data import building, images, schema
from mtl_jax.data.field_of_view import Shape
from mtl_jax.data.folder.manifest import parse_manifest, read_manifest, read_masks
from mtl_jax.data.folder.rows import ManifestRow
from mtl_jax.errors import UserError


@dataclasses.dataclass(eq=False, kw_only=True)
class FundusFolderConfig(tfds.core.BuilderConfig):
    """Source and image size of a data set.

    Attributes:
      name: of the data set and its size.
      source: directory that relative paths in the manifest start from.
      manifest: the CSV file.
      image_size: pixels a side of the model image.
      shape: what it shows of the photograph.
      fingerprint: hash of the contents of manifest and files.
    """

    name: str
    source: str
    manifest: str
    image_size: int
    shape: Shape
    fingerprint: str = ""


class FundusFolder(building.LocalBuilder):
    """Builder for a manifest that `read_manifest` has accepted."""

    name = "fundus_folder"

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description="Colour fundus photographs with annotations from a manifest.",
            features=schema.features(config.image_size),
            metadata=tfds.core.MetadataDict(
                fingerprint=config.fingerprint, shape=config.shape
            ),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        rows, _ = parse_manifest(
            self.builder_config.manifest, self.builder_config.source
        )
        by_split = {
            name: [r for r in rows if r.split == name] for name in schema.SPLITS
        }
        return {
            name: self._generate_examples(name, members)
            for name, members in by_split.items()
            if members
        }

    def _generate_examples(
        self, split: str, rows: list[ManifestRow]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        make_record = functools.partial(
            record_of, image_size=config.image_size, shape=config.shape
        )
        records = building.parallel_map(
            make_record, rows, f"building {split}", processes=True
        )
        for row, record in zip(rows, records, strict=True):
            yield row.image_id, record


def record_of(row: ManifestRow, image_size: int, shape: Shape) -> dict[str, Any]:
    """Makes the record of one row; see `schema.encode_record`."""
    disc_mask, cup_mask = read_masks(row)
    return schema.encode_record(
        row.image_id,
        images.open_photograph(row.image),
        image_size,
        shape,
        disc_mask=disc_mask,
        cup_mask=cup_mask,
        fovea_xy=row.fovea_xy,
        glaucoma=row.glaucoma,
        file_name=row.image.name,
    )


def build(
    data_dir: images.PathLike,
    source: images.PathLike,
    *,
    manifest: images.PathLike | None = None,
    image_size: int = 256,
    shape: Shape = "fov",
    name: str | None = None,
) -> pathlib.Path:
    """Builds the data set of a manifest, unless it is built already.

    Every file is checked before anything is written. Large data sets are built by
    spawned processes; see `building.parallel_map`.

    Args:
      data_dir: directory of all TFDS data sets.
      source: directory that relative paths in the manifest start from.
      manifest: CSV file with the columns `rows.COLUMNS`; by default `manifest.csv` in
        `source`.
      image_size: pixels a side of the model image, a multiple of 16, at least 32.
      shape: what it shows of a photograph, see `field_of_view.frame_of`.
      name: name of the data set, by default that of the source directory. Characters
        other than ASCII letters, digits and `_` become `_`.

    Returns:
      The version directory, for `tfds.builder_from_directory`.

    Raises:
      UserError: if the manifest or a file has problems (all are listed), if a data set
        of this name was built from other contents, or if an argument is invalid.
    """
    source = pathlib.Path(source).expanduser().absolute()
    if not source.is_dir():
        raise UserError(f"{source} is not a directory; name the one with the images.")
    manifest = pathlib.Path(manifest or source / "manifest.csv").expanduser().absolute()
    schema.check_image_size(image_size)
    name = re.sub(r"[^A-Za-z0-9_]", "_", name or source.resolve().name)
    if not name:
        raise UserError(f"{source} has no name for the data set; give a name.")
    rows, _ = parse_manifest(manifest, source)
    config = FundusFolderConfig(
        name=building.config_name(f"{name}-{image_size}px", shape, default="fov"),
        source=str(source),
        manifest=str(manifest),
        image_size=image_size,
        shape=shape,
        fingerprint=_fingerprint(manifest, rows),
    )
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
    version_dir = data_dir / FundusFolder.name / config.name / str(FundusFolder.VERSION)
    if not version_dir.exists():
        read_manifest(manifest, source)
        with building.quiet_tfds():
            builder = FundusFolder(
                data_dir=data_dir, config=config, file_format="array_record"
            )
        version_dir = building.prepare(builder)
    _check_contents(version_dir, config)
    return version_dir


def _fingerprint(manifest: pathlib.Path, rows: list[ManifestRow]) -> str:
    """Hashes a manifest's contents and its files' sizes and modification times."""
    digest = hashlib.sha256(manifest.read_bytes())
    for row in rows:
        for path in (row.image, *row.mask_files.values()):
            digest.update(_stamp(path).encode())
    return digest.hexdigest()


def _stamp(path: pathlib.Path) -> str:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return "absent;"
    return f"{stat.st_size} {stat.st_mtime_ns};"


def _check_contents(version_dir: pathlib.Path, config: FundusFolderConfig) -> None:
    """Refuses a data set that was built from other contents."""
    built = building.read_metadata(version_dir, "fingerprint")
    if built["fingerprint"] != config.fingerprint:
        raise UserError(
            f"{version_dir} was built from other contents of {config.manifest} and its"
            " files; give another name or delete this folder."
        )
