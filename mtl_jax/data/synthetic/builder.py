"""A data set of drawn fundi, for demonstrations and tests without patients' data.

Its splits imitate REFUGE: one camera takes the training split, another one validation
and test, and few eyes have glaucoma.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mtl_jax import files
from mtl_jax.data import building, schema
from mtl_jax.data.field_of_view import Shape
from mtl_jax.data.schema import SPLITS
from mtl_jax.data.synthetic import renderer
from mtl_jax.errors import UserError

CAMERAS = {
    "train": renderer.TRAINING_CAMERA,
    "validation": renderer.EVALUATION_CAMERA,
    "test": renderer.EVALUATION_CAMERA,
}

# Number of photographs of `write_example`, and their pixels a side.
EXAMPLE_IMAGES = 6
EXAMPLE_SIZE = 512


@dataclasses.dataclass(eq=False)
class SyntheticFundusConfig(tfds.core.BuilderConfig):
    """Size, numbers and seed of a synthetic data set.

    Attributes:
      name: derived from the other fields; leave it empty.
      image_size: pixels a side, a multiple of 16 and at least 32.
      shape: what the model image shows of the photograph.
      num_images: numbers of images in train, validation and test.
      glaucoma_fraction: share of glaucoma in each split.
      seed: random seed; it draws the same eyes for any number of images.
    """

    name: str = ""
    image_size: int = 256
    shape: Shape = "stretch"
    num_images: Sequence[int] = (400, 400, 400)
    glaucoma_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self.num_images = tuple(self.num_images)
        self._check()
        self.name = self._derive_name()
        self.description = (
            f"{self.image_size} x {self.image_size} pixels, "
            f"{100 * self.glaucoma_fraction:g} % glaucoma."
        )

    def _check(self) -> None:
        schema.check_image_size(self.image_size)
        counts = self.num_images
        if len(counts) != len(SPLITS) or min(counts) < 1:
            raise UserError(
                f"The numbers of synthetic images are {counts}; give one of at least 1 "
                f"for each of {', '.join(SPLITS)}."
            )
        if not 0 <= self.glaucoma_fraction <= 1:
            raise UserError(
                f"The glaucoma fraction of a synthetic data set is "
                f"{self.glaucoma_fraction}; give a number from 0 to 1."
            )
        if self.seed < 0:
            raise UserError(
                f"The seed of a synthetic data set is {self.seed}; give 0 or more."
            )

    def _derive_name(self) -> str:
        """Makes a name from the size and the values that differ from the defaults."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        parts = [f"{self.image_size}px"]
        if self.num_images != defaults["num_images"]:
            parts += map(str, self.num_images)
        if self.glaucoma_fraction != defaults["glaucoma_fraction"]:
            parts.append(f"glaucoma{float(self.glaucoma_fraction)}")
        if self.seed != defaults["seed"]:
            parts.append(f"seed{self.seed}")
        return building.config_name("-".join(parts), self.shape, "stretch")


class SyntheticFundus(building.LocalBuilder):
    """Builds drawn fundi as a TFDS data set of `schema` records."""

    name = "synthetic_fundus"

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedurally drawn colour fundus photographs with exact "
            "optic disc, optic cup, fovea and glaucoma annotations.",
            features=schema.features(config.image_size),
            metadata=tfds.core.MetadataDict(
                image_size=config.image_size,
                shape=config.shape,
                num_images=list(config.num_images),
                glaucoma_fraction=config.glaucoma_fraction,
                seed=config.seed,
            ),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        count = config.num_images[SPLITS.index(split)]
        labels = assign_labels(count, config.glaucoma_fraction)
        draw = functools.partial(
            draw_record,
            split=split,
            image_size=config.image_size,
            shape=config.shape,
            seed=config.seed,
        )
        images = list(enumerate(labels))
        for record in building.parallel_map(
            draw, images, f"drawing {split}", processes=True
        ):
            yield record["image_id"], record


def build(
    data_dir: str | os.PathLike[str],
    *,
    image_size: int = 256,
    shape: Shape = "stretch",
    num_images: Sequence[int] = (400, 400, 400),
    glaucoma_fraction: float = 0.1,
    seed: int = 0,
) -> pathlib.Path:
    """Builds a synthetic data set, unless it is built already.

    An interrupted build leaves at most a folder `incomplete.*`. The next build of the
    same data set removes it.

    Args:
      data_dir: TFDS data directory, created if it does not exist.
      image_size: pixels a side.
      shape: what the model image shows of a photograph, see `field_of_view.frame_of`.
      num_images: numbers of images in train, validation and test.
      glaucoma_fraction: share of glaucoma in each split.
      seed: random seed of the eyes.

    Returns:
      The version directory, for `tfds.builder_from_directory`.

    Raises:
      UserError: if a size, number or fraction is invalid.
    """
    config = SyntheticFundusConfig(
        image_size=image_size,
        shape=shape,
        num_images=num_images,
        glaucoma_fraction=glaucoma_fraction,
        seed=seed,
    )
    with building.quiet_tfds():
        builder = SyntheticFundus(data_dir=os.fspath(data_dir), config=config)
    return building.prepare(builder)


def draw_record(
    image: tuple[int, bool],
    *,
    split: str,
    image_size: int,
    seed: int,
    shape: Shape = "stretch",
) -> dict[str, Any]:
    """Draws one photograph of a split and makes its record.

    Args:
      image: its index in the split, and whether it has glaucoma. The eye depends only
        on these two, the split and the seed.
      split: "train", "validation" or "test".
      image_size: pixels a side, both native and model size.
      seed: seed of the data set.
      shape: what the model image shows.

    Returns:
      A record that fits `schema.features(image_size)`.
    """
    index, _ = image
    fundus = _draw(image, split, image_size, seed)
    image_id = f"{split}-{index:05d}"
    return schema.encode_record(
        image_id,
        Image.fromarray(fundus.photograph),
        image_size,
        shape,
        disc_mask=fundus.disc_mask,
        cup_mask=fundus.cup_mask,
        fovea_xy=np.array(fundus.fovea_xy),
        glaucoma=fundus.glaucoma,
        camera=CAMERAS[split].name,
        file_name=f"{image_id}.png",
    )


def _draw(
    image: tuple[int, bool], split: str, image_size: int, seed: int
) -> renderer.Fundus:
    index, glaucoma = image
    seeds = np.random.SeedSequence([seed, SPLITS.index(split), index])
    size = (image_size, image_size)
    return renderer.render(np.random.default_rng(seeds), size, CAMERAS[split], glaucoma)


def write_example(folder: str | os.PathLike[str]) -> None:
    """Writes an example for `fundus_folder`: JPEG photographs, PNG masks, a manifest.

    The photographs are the first of the test split, drawn larger.

    Args:
      folder: output folder; an earlier example there is replaced, if nobody has added
        or changed a file.

    Raises:
      UserError: if it holds something else or cannot be written.
    """
    rows = ["image_id,image,mask,fovea_x,fovea_y,glaucoma,split"]
    with files.whole_directory(pathlib.Path(folder)) as output:
        for name in ("images", "masks"):
            (output / name).mkdir()
        for image in enumerate(assign_labels(EXAMPLE_IMAGES, 0.4)):
            name = f"example{image[0] + 1}"
            fundus = _draw(image, "test", EXAMPLE_SIZE, seed=0)
            photograph, mask = f"images/{name}.jpg", f"masks/{name}.png"
            Image.fromarray(fundus.photograph).save(output / photograph, quality=92)
            grey = np.select([fundus.cup_mask > 0, fundus.disc_mask > 0], [0, 128], 255)
            Image.fromarray(grey.astype(np.uint8)).save(output / mask)
            x, y = fundus.fovea_xy
            label = int(fundus.glaucoma)
            rows.append(f"{name},{photograph},{mask},{x:.2f},{y:.2f},{label},test")
        files.write_text(output / "manifest.csv", "\n".join(rows) + "\n")


def assign_labels(count: int, glaucoma_fraction: float) -> list[bool]:
    """Spreads `round(glaucoma_fraction * count)` positives evenly over a split.

    Except for rounding, a short split is therefore the beginning of a longer one.

    Args:
      count: number of photographs.
      glaucoma_fraction: requested share of glaucoma.

    Returns:
      [count] labels. From two photographs on, both classes occur.
    """
    positives = round(glaucoma_fraction * count)
    if count >= 2:
        positives = min(max(positives, 1), count - 1)
    # Number of positives among the first i photographs, rounded half up.
    held = [(2 * i * positives + count) // (2 * count) for i in range(count + 1)]
    return [after > before for before, after in zip(held, held[1:], strict=False)]
