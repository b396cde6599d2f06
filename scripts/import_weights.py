"""Imports an encoder: --source=FILE --architecture=vgg16 --output=weights/vgg16."""

import pathlib

from absl import flags

from mtl_jax import cli

SOURCE = flags.DEFINE_string(
    "source", None, "torchvision's .pth or .safetensors, or Keras' .h5 file."
)
ARCHITECTURE = flags.DEFINE_enum(
    "architecture", None, ["vgg13", "vgg13_bn", "vgg16", "vgg16_bn"], "Of the file."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
flags.mark_flags_as_required(["source", "architecture", "output"])


def main() -> None:
    """Imports the weights and says how to train from them."""
    from mtl_jax import files, weights

    output = pathlib.Path(OUTPUT.value)
    files.check_replaceable(output, weights.encoder.CONTENTS)
    encoder = weights.import_vgg(pathlib.Path(SOURCE.value), ARCHITECTURE.value)
    weights.save(encoder, output)
    if encoder.ignored:
        print(
            f"ignored, being no part of the encoder: {', '.join(encoder.ignored[:8])}"
            + ", ..." * (len(encoder.ignored) > 8)
        )
    norm = "batch" if encoder.has_norm else "none"
    print(
        f"{output}: now scripts/train.py --config.model.pretrained={output} "
        f"--config.model.encoder={encoder.encoder} --config.model.norm={norm}"
    )


if __name__ == "__main__":
    cli.run(main)
