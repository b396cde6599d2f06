"""Imports weights: --source=FILE --architecture=vgg16 --output=weights/vgg16.

With --architecture=glaucoma_mtl it turns a checkpoint of the authors' program into a
workdir for scripts/evaluate.py, scripts/predict.py and scripts/train.py --resume.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from mtl_jax.commands import _program

SOURCE = flags.DEFINE_string(
    "source",
    None,
    "File of weights: torchvision's .pth or .safetensors, Keras' .h5, or a checkpoint "
    "of the authors' program. With --architecture=workdir, a workdir.",
    required=True,
)
ARCHITECTURE = flags.DEFINE_enum(
    "architecture",
    None,
    ["vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "resnet34", "workdir", "glaucoma_mtl"],
    "Architecture in the file; workdir takes the best checkpoint of a run.",
    required=True,
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(pathlib.Path(__file__).parents[1] / "configuration/authors.py"),
    "glaucoma_mtl: config of the workdir; by default, configs/refuge.py:authors.",
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 256, "glaucoma_mtl: pixels a side of the network's images."
)


def main() -> None:
    """Imports the weights and prints the command that uses them."""
    if ARCHITECTURE.value == "glaucoma_mtl":
        _import_network()
    else:
        _import_encoder()


def _import_encoder() -> None:
    from mtl_jax import files, weights, workdirs

    output, source, more = pathlib.Path(OUTPUT.value), pathlib.Path(SOURCE.value), ""
    files.check_replaceable(output, [source])
    if ARCHITECTURE.value == "workdir":
        network = workdirs.load(source)
        encoder = workdirs.encoder_of(network)
        more = f" --config.model.width={encoder.width}"
        if not network.experiment.model.normalize_input:
            more += " --config.model.normalize_input=off"
    else:
        encoder = weights.import_encoder(source, ARCHITECTURE.value)
    weights.save(encoder, output)
    _say_ignored(encoder.ignored, "encoder")
    _program.say(
        f"{output}: now scripts/train.py --config.model.pretrained={output} "
        f"--config.model.encoder={encoder.encoder} --config.model.norm={encoder.norm}"
        + more
    )


def _import_network() -> None:
    from mtl_jax import files, weights, workdirs

    output = pathlib.Path(OUTPUT.value)
    files.check_replaceable(output, [pathlib.Path(SOURCE.value)])
    network = weights.import_checkpoint(pathlib.Path(SOURCE.value))
    workdirs.write_imported(output, CONFIG.value, network, IMAGE_SIZE.value)
    _say_ignored(network.ignored, "network")
    if network.classifier is None:
        print(
            "the file has no logistic regression on the cup-to-disc ratio: the first "
            "evaluation fits one"
        )
    else:
        print(
            "logistic regression on the cup-to-disc ratio: coefficient "
            f"{network.classifier.coefficient:.4f}, intercept "
            f"{network.classifier.intercept:.4f}"
        )
    _program.say(
        f"{output}: now scripts/evaluate.py --workdir={output}, or continue training "
        "from fresh optimizer states with scripts/train.py --resume"
    )


def _say_ignored(names: tuple[str, ...], of: str) -> None:
    if names:
        print(
            f"ignored, not part of the {of}: {', '.join(names[:8])}"
            + ", ..." * (len(names) > 8)
        )
