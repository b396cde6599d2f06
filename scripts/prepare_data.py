"""Builds a data set: --dataset=synthetic_fundus or fundus_folder [--source=DIR]."""

from absl import flags

from mtl_jax import cli

DATASET = flags.DEFINE_enum(
    "dataset", None, ["synthetic_fundus", "fundus_folder"], "What to build."
)
DATA_DIR = flags.DEFINE_string("data_dir", "data", "Folder of all data sets.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 256, "Pixels a side, 16 divides it.")
SOURCE = flags.DEFINE_string("source", None, "fundus_folder: the photographs.")
MANIFEST = flags.DEFINE_string(
    "manifest", None, "fundus_folder: CSV file; manifest.csv of the source by default."
)
NAME = flags.DEFINE_string("name", None, "fundus_folder: what to call the data set.")
NUM_IMAGES = flags.DEFINE_list(
    "num_images", ["400", "400", "400"], "synthetic_fundus: train, validation, test."
)
GLAUCOMA_FRACTION = flags.DEFINE_float(
    "glaucoma_fraction", 0.1, "synthetic_fundus: share of glaucoma in each split."
)
SEED = flags.DEFINE_integer("seed", 0, "synthetic_fundus: another seed, other eyes.")
EXAMPLE = flags.DEFINE_string(
    "example",
    None,
    "synthetic_fundus: also write a few photographs as files, with a manifest, into "
    "this folder: an example of what fundus_folder reads.",
)
flags.mark_flag_as_required("dataset")


def main() -> None:
    """Builds the data set and says how to train on it."""
    from mtl_jax.data import folder, pipeline, synthetic

    if DATASET.value == "fundus_folder":
        version_dir = folder.build(
            DATA_DIR.value,
            cli.required(SOURCE),
            manifest=MANIFEST.value,
            image_size=IMAGE_SIZE.value,
            name=NAME.value,
        )
    else:
        version_dir = synthetic.build(
            DATA_DIR.value,
            image_size=IMAGE_SIZE.value,
            num_images=tuple(cli.whole_numbers(NUM_IMAGES)),
            glaucoma_fraction=GLAUCOMA_FRACTION.value,
            seed=SEED.value,
        )
    if EXAMPLE.value:
        synthetic.write_example(EXAMPLE.value)
    print(pipeline.describe(version_dir))


if __name__ == "__main__":
    cli.run(main)
