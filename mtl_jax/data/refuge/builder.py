"""A TFDS data set of REFUGE, from the official files in any arrangement."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from mtl_jax.data import building, images, schema
from mtl_jax.data.field_of_view import Shape
from mtl_jax.data.refuge.files import Listing, list_files, some
from mtl_jax.data.refuge.layout import Layout, sort_files
from mtl_jax.data.refuge.record import examine, problems_of
from mtl_jax.data.refuge.survey import Case, survey
from mtl_jax.errors import UserError

_LONGEST_REPORT = 50
_HINT = "\nCorrect these, or build with partial labels by --allow_missing."


@dataclasses.dataclass(eq=False, kw_only=True)
class RefugeConfig(tfds.core.BuilderConfig):
    """Image size and contents of a REFUGE data set.

    Attributes:
      name: its size.
      source: directory of the files, for messages.
      image_size: pixels a side of the model image.
      shape: what it shows of the photograph.
      cases: the photographs.
      fingerprint: hash of the source's contents.
      allow_missing: whether problems are accepted.
      found: text about what the source holds.
      problems: sentences about what is wrong with the source.
    """

    name: str
    source: str
    image_size: int
    shape: Shape
    cases: list[Case] = dataclasses.field(default_factory=list)
    fingerprint: str = ""
    allow_missing: bool = False
    found: str = ""
    problems: list[str] = dataclasses.field(default_factory=list)


class Refuge(building.LocalBuilder):
    """Builder for the photographs of a `survey`.

    Damage and wrong sizes show only when files are decoded, which is most of the work.
    Files are therefore decoded once: problems are collected while records are written,
    and all are reported at the end of the last split. TFDS then deletes the unfinished
    data set.
    """

    name = "refuge"

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description="REFUGE: colour fundus photographs with optic disc and cup, "
            "fovea and glaucoma label.",
            features=schema.features(config.image_size),
            metadata=tfds.core.MetadataDict(
                fingerprint=config.fingerprint,
                shape=config.shape,
                found=config.found,
                problems=list(config.problems),
                # By mask: the number of pixels with another value than REFUGE's.
                other_values={},
                # Numbers of photographs by `images.Photograph.conversion`.
                conversions={},
            ),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        cases = {
            split: [case for case in self.builder_config.cases if case.split == split]
            for split in schema.SPLITS
        }
        present = [split for split in schema.SPLITS if cases[split]]
        return {
            split: self._generate_examples(split, cases[split], split == present[-1])
            for split in present
        }

    def _generate_examples(
        self, split: str, cases: list[Case], is_last: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        examine_one = functools.partial(
            examine, image_size=config.image_size, shape=config.shape
        )
        problems = self.info.metadata["problems"]
        is_empty = True
        for case, examined in zip(
            cases,
            building.parallel_map(
                examine_one, cases, f"building {split}", processes=True
            ),
            strict=True,
        ):
            problems += examined.problems
            if case.mask is not None and examined.other_values:
                other_values = self.info.metadata["other_values"]
                other_values[case.mask.name] = examined.other_values
            if examined.record is not None:
                is_empty = False
                building.count_conversion(self, examined.conversion)
                yield case.stem, examined.record
        report = _report(config.source, problems)
        if is_empty:  # TFDS cannot write an empty split.
            raise UserError(f"No photograph of the {split} split can be read. {report}")
        if is_last and problems and not config.allow_missing:
            raise UserError(report + _HINT)


def build(
    data_dir: images.PathLike,
    source: images.PathLike,
    *,
    image_size: int = 256,
    shape: Shape = "stretch",
    allow_missing: bool = False,
) -> pathlib.Path:
    """Builds REFUGE, unless it is built already, and prints what it found.

    Large data sets are built by spawned processes; see `building.parallel_map`.

    Args:
      data_dir: directory of all TFDS data sets.
      source: directory with the official archives, or with their files in any folders.
      image_size: pixels a side of the model image, a multiple of 16, at least 32.
      shape: what it shows of a photograph, see `field_of_view.frame_of`.
      allow_missing: whether to build if something is missing or contradictory. Such
        labels are then absent, unreadable photographs are left out, and problems are
        printed to stderr.

    Returns:
      The version directory, for `tfds.builder_from_directory`.

    Raises:
      UserError: if something is missing or contradictory (all is listed), if the data
        set was built from other contents, or if an argument is invalid.
    """
    source = pathlib.Path(source).expanduser().absolute()
    if not source.is_dir():
        raise UserError(f"{source} is not a directory; name the one that holds REFUGE.")
    schema.check_image_size(image_size)
    listing = list_files(source)
    layout = sort_files(listing.files)
    if not (layout.photographs or layout.masks or listing.problems):
        raise UserError(_nothing_found(source, listing.notes + layout.notes))
    config = RefugeConfig(
        name=building.config_name(f"{image_size}px", shape, default="stretch"),
        source=str(source),
        image_size=image_size,
        shape=shape,
        fingerprint=layout.fingerprint,
        allow_missing=allow_missing,
    )
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
    version_dir = data_dir / Refuge.name / config.name / str(Refuge.VERSION)
    is_new = not version_dir.exists()
    if is_new:
        _survey_into(config, listing, layout)
        with building.quiet_tfds():
            builder = Refuge(
                data_dir=data_dir, config=config, file_format="array_record"
            )
        building.prepare(builder)
    metadata = _metadata(version_dir, config)
    if not is_new:
        print(metadata["found"])
    if metadata["problems"]:
        print(_report(config.source, metadata["problems"]), file=sys.stderr)
    if other_values := metadata["other_values"]:
        print(f"warning: {_rounded(other_values)}", file=sys.stderr)
    building.say_conversions(metadata)
    return version_dir


def _survey_into(config: RefugeConfig, listing: Listing, layout: Layout) -> None:
    """Adds what the source holds to a config, and prints it.

    Raises:
      UserError: if there are problems and they are not allowed.
    """
    there = survey(layout)
    config.cases = there.cases
    config.problems = listing.problems + there.problems
    config.found = "\n".join(
        [f"found in {config.source}:", there.found, *listing.notes, *layout.notes]
    )
    print(config.found, flush=True)
    if config.problems and not config.allow_missing:
        # There will be no build, so the files are decoded here.
        for found in building.parallel_map(
            problems_of, there.cases, "checking files", processes=True
        ):
            config.problems += found
        raise UserError(_report(config.source, config.problems) + _HINT)
    if not there.cases:
        raise UserError(_report(config.source, config.problems))


def _metadata(version_dir: pathlib.Path, config: RefugeConfig) -> dict[str, Any]:
    """Reads the metadata of a data set and checks that it fits the config.

    Raises:
      UserError: if the data set was built from other files, or is incomplete.
    """
    metadata = building.read_metadata(
        version_dir, "fingerprint", "problems", "found", "other_values"
    )
    problems = metadata["problems"]
    if metadata["fingerprint"] != config.fingerprint:
        raise UserError(
            f"{version_dir} was built from other files than {config.source} holds now; "
            "delete this folder or name another data directory."
        )
    if problems and not config.allow_missing:
        raise UserError(
            f"{version_dir} was built with --allow_missing and is incomplete; give "
            "that flag again, or complete the source and delete this folder. "
            + _report(config.source, problems)
        )
    return metadata


def _nothing_found(source: pathlib.Path, notes: list[str]) -> str:
    sentence = (
        f"{source} holds nothing of REFUGE: no photograph or mask in it, its "
        "subdirectories or its zip archives has a name like g0001.jpg, n0001.jpg, "
        "V0001.jpg or T0001.jpg; name the directory that holds the official archives, "
        "or their files."
    )
    return "\n  ".join([sentence, *notes])


def _rounded(other_values: dict[str, int]) -> str:
    """A sentence about mask pixels whose values are rounded to REFUGE's."""
    masks = some(f"{count} in {name}" for name, count in other_values.items())
    return (
        f"{sum(other_values.values())} pixels of masks have other values than 0 cup, "
        f"128 rim, 255 background, and count as the nearest ({masks}); the official "
        "masks have no others."
    )


def _report(source: str, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = problems[:_LONGEST_REPORT]
    if len(problems) > _LONGEST_REPORT:
        lines = [*lines, f"and {len(problems) - _LONGEST_REPORT} more"]
    return "\n  ".join([f"{source} has {count}:", *lines])
