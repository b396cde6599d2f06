"""Predicts on photographs: --workdir=RUN --images=DIR_OR_GLOB --output=OUT."""

import pathlib
import sys

from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
IMAGES = flags.DEFINE_string(
    "images", None, "Photographs: a directory, a file or a glob."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Checkpoint: best, latest or a step."
)
FORMAT = flags.DEFINE_enum(
    "format",
    "table",
    ["table", "refuge"],
    "Output; refuge is a submission to the challenge.",
)
flags.mark_flags_as_required(["workdir", "images", "output"])


def main() -> int:
    """Predicts. Returns the exit code: 1 if a photograph could not be read."""
    from mtl_jax.reporting import predictions

    failures = predictions.write(
        pathlib.Path(WORKDIR.value),
        IMAGES.value,
        pathlib.Path(OUTPUT.value),
        checkpoint=CHECKPOINT.value,
        form=FORMAT.value,
    )
    table = FORMAT.value == "table"
    print(f"{OUTPUT.value}/predictions.csv" if table else OUTPUT.value)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"Photographs skipped: {len(failures)}.", file=sys.stderr)
    return 1 if failures else 0
