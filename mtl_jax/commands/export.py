"""Exports a trained network: --workdir=RUN --output=FOLDER [--dtype=float16].

The folder holds network.json and the parameters as .safetensors. The other commands
read it as --workdir.
"""

import pathlib

from absl import flags

from mtl_jax.commands import _program

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Checkpoint: best, latest or a step."
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "float16"],
    "Precision of the stored numbers; float16 halves the files.",
)


def main() -> None:
    """Exports, and prints the size and what rounding does to the outputs."""
    from mtl_jax import workdirs

    output = pathlib.Path(OUTPUT.value)
    exported = workdirs.export(
        pathlib.Path(WORKDIR.value),
        output,
        checkpoint=CHECKPOINT.value,
        dtype="float16" if DTYPE.value == "float16" else "float32",
    )
    for path in sorted(output.glob("[!.]*")):
        print(path)
    print(f"{exported.num_bytes / 1e6:.2f} MB")
    if exported.difference:
        print(
            f"{DTYPE.value} changes probabilities, of classes and pixels, by at most "
            f"{exported.difference:.2g} on drawn fundi"
        )
    _program.say(f"{output}: now scripts/predict.py --workdir={output}")
