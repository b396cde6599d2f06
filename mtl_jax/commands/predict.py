"""Predicts on photographs: --images=DIR_OR_GLOB --output=OUT [--workdir=RUN].

Without --workdir the network in the package predicts. It is for research only: it is no
medical device.
"""

import pathlib
import sys

from absl import flags

from mtl_jax.commands import _flags

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default, the network in the package."
)
IMAGES = flags.DEFINE_string(
    "images", None, "Photographs: a directory, a file or a glob.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Checkpoint: best, latest or a step."
)
FORMAT = flags.DEFINE_enum(
    "format",
    "table",
    ["table", "refuge"],
    "Output; refuge is a submission to the challenge.",
)


def main() -> int:
    """Predicts. Returns the exit code: 1 if a photograph could not be read."""
    from mtl_jax.reporting import predictions

    table = FORMAT.value == "table"
    failures, conversions = predictions.write(
        _flags.workdir(WORKDIR),
        IMAGES.value,
        pathlib.Path(OUTPUT.value),
        checkpoint=CHECKPOINT.value,
        form="table" if table else "refuge",
    )
    print(f"{OUTPUT.value}/predictions.csv" if table else OUTPUT.value)
    for conversion in conversions:
        print(f"note: {conversion}", file=sys.stderr)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"Photographs skipped: {len(failures)}.", file=sys.stderr)
    return 1 if failures else 0
