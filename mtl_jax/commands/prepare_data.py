"""Builds a data set: --dataset=synthetic_fundus, fundus_folder or refuge."""

from typing import Any

from absl import flags

from mtl_jax.commands import _flags

DATASET = flags.DEFINE_enum(
    "dataset",
    None,
    ["synthetic_fundus", "fundus_folder", "refuge"],
    "Data set to build.",
    required=True,
)
DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of all data sets.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 256, "Pixels a side; a multiple of 16.")
SHAPE = flags.DEFINE_enum(
    "shape",
    None,
    ["fov", "stretch"],
    "What the network sees of a photograph: the smallest square around its round field "
    "of view (default of fundus_folder), or the whole, stretched to a square.",
)
SOURCE = flags.DEFINE_string(
    "source",
    None,
    "fundus_folder: folder of the photographs with a manifest; or several sources as "
    "NAME:FOLDER,NAME:FOLDER, where NAME is a public data set (drishti_gs1, g1020, "
    "idrid, origa, papila, refuge, rim_one_dl, smdg) or your own for a folder with a "
    "manifest. refuge: folder of the official archives or of their files.",
)
MANIFEST = flags.DEFINE_string(
    "manifest", None, "fundus_folder: CSV file; by default, manifest.csv in the source."
)
ALLOW_MISSING = flags.DEFINE_bool(
    "allow_missing",
    False,
    "refuge, public sources: build with partial labels if files are missing.",
)
ACCEPT = flags.DEFINE_list(
    "accept",
    [],
    "fundus_folder: kinds of unusual annotations that are meant: photograph_as_mask, "
    "alpha, colours, empty_mask, large_mask, grey_levels, one_structure, tiny_disc, "
    "cup_outside_disc, fovea_at_origin, fovea_outside_field, fovea_far, two_splits, "
    "two_diagnoses.",
)
NAME = flags.DEFINE_string("name", None, "fundus_folder: name of the data set.")
NUM_IMAGES = flags.DEFINE_list(
    "num_images",
    ["400", "400", "400"],
    "synthetic_fundus: train, validation, test images.",
)
GLAUCOMA_FRACTION = flags.DEFINE_float(
    "glaucoma_fraction", 0.1, "synthetic_fundus: share of glaucomas in each split."
)
SEED = flags.DEFINE_integer("seed", 0, "synthetic_fundus: seed of the drawn eyes.")
EXAMPLE = flags.DEFINE_string(
    "example",
    None,
    "synthetic_fundus: folder for a few more photographs as files with a manifest, an "
    "example of what fundus_folder reads.",
)


def main() -> None:
    """Builds the data set and prints what it holds, and how to train on it."""
    from mtl_jax.data import folder, pipeline, refuge, synthetic
    from mtl_jax.reporting import terminal

    # Every data set has its own default.
    shape: dict[str, Any] = {"shape": SHAPE.value} if SHAPE.value else {}
    if DATASET.value == "fundus_folder":
        version_dir = folder.build(
            DATA_DIR.value,
            _flags.required(SOURCE),
            manifest=MANIFEST.value,
            image_size=IMAGE_SIZE.value,
            name=NAME.value,
            allow_missing=ALLOW_MISSING.value,
            accept=ACCEPT.value,
            **shape,
        )
    elif DATASET.value == "refuge":
        version_dir = refuge.build(
            DATA_DIR.value,
            _flags.required(SOURCE),
            image_size=IMAGE_SIZE.value,
            allow_missing=ALLOW_MISSING.value,
            **shape,
        )
    else:
        version_dir = synthetic.build(
            DATA_DIR.value,
            image_size=IMAGE_SIZE.value,
            num_images=_flags.whole_numbers(NUM_IMAGES),
            glaucoma_fraction=GLAUCOMA_FRACTION.value,
            seed=SEED.value,
            **shape,
        )
    if EXAMPLE.value:
        synthetic.write_example(EXAMPLE.value)
    print(terminal.tally_text(pipeline.tally(version_dir)))
    print(pipeline.describe(version_dir))
