"""Exports a trained network: --output=FILE --format=onnx|stablehlo [--workdir=RUN].

The file takes uint8 images of the network's size and gives probabilities, maps, masks
and points; FILE.json beside it says the rest. --format=safetensors, the default, writes
a folder with network.json and the parameters, which the other commands read as
--workdir. Without --workdir the network in the package is exported.
"""

import pathlib

from absl import flags

from mtl_jax.commands import _flags, _program

WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or a,b,c: those of several runs that are averaged in one file; "
    "by default, the network in the package.",
)
OUTPUT = flags.DEFINE_string(
    "output", None, "File to write; a folder for safetensors.", required=True
)
FORMAT = flags.DEFINE_enum(
    "format", "safetensors", ["stablehlo", "onnx", "safetensors"], "Format to write."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Checkpoint: best, latest or a step."
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "float16"],
    "Precision of the numbers in safetensors; float16 halves the files.",
)
TTA = flags.DEFINE_bool(
    "tta",
    None,
    "Average over the flips of each image, in a file; by default, as predict does.",
)
CHECK = flags.DEFINE_string(
    "check",
    None,
    "Photographs: a directory, a file or a glob. The file is read back, and its "
    "largest differences from what predict says of them are printed.",
)


def main() -> None:
    """Exports, and prints what was written and how far it is from the network."""
    if FORMAT.value == "safetensors":
        _write_folder()
    else:
        _write_file("onnx" if FORMAT.value == "onnx" else "stablehlo")


def _write_folder() -> None:
    from mtl_jax import files, workdirs
    from mtl_jax.errors import UserError

    output = files.resolved(pathlib.Path(OUTPUT.value))
    folders = _flags.workdirs(WORKDIR)
    if len(folders) > 1 or TTA.value is not None or CHECK.value is not None:
        raise UserError(
            "Several folders in --workdir, --tta and --check are for a file; name it by"
            " --format=onnx or --format=stablehlo."
        )
    exported = workdirs.export(
        folders[0],
        output,
        checkpoint=CHECKPOINT.value,
        dtype="float16" if DTYPE.value == "float16" else "float32",
    )
    for path in sorted(output.glob("[!.]*")):
        print(pathlib.Path(OUTPUT.value, path.name))
    print(f"{exported.num_bytes / 1e6:.2f} MB")
    if exported.difference:
        print(
            f"{DTYPE.value} changes probabilities, of classes and pixels, by at most "
            f"{exported.difference:.2g} on drawn fundi"
        )
    _program.say(f"{OUTPUT.value}: now scripts/predict.py --workdir={OUTPUT.value}")


def _write_file(form) -> None:
    from mtl_jax import exports, files, workdirs
    from mtl_jax.data import images
    from mtl_jax.errors import UserError

    if DTYPE.value != "float32":
        raise UserError("--dtype is for --format=safetensors; leave it out.")
    photographs = images.find_photographs(CHECK.value) if CHECK.value else []
    output = files.resolved(pathlib.Path(OUTPUT.value))
    network = workdirs.load_calibrated(
        _flags.workdirs(WORKDIR), CHECKPOINT.value, tta=TTA.value
    )
    if network.note:
        _program.warn(network.note)
    exports.write(network, output, form)
    print(OUTPUT.value)
    print(f"{OUTPUT.value}.json")
    print(f"{output.stat().st_size / 1e6:.2f} MB")
    if not photographs:
        return
    found = exports.compare(exports.read(output), network, photographs)
    print(f"largest differences from predict on {found.num_images} photographs:")
    for name in ("maps", "probabilities", "points", "vcdr"):
        value = getattr(found, name)
        if value is not None:
            print(f"  {name}: {value:.1e}")
    print(f"  pixels of masks that differ: {found.mask_pixels}")
