"""Predicts on photographs: --images=DIR_OR_GLOB --output=OUT [--workdir=RUN].

Without --workdir the network in the package predicts. It is for research only: it is no
medical device.
"""

import pathlib
import sys

from absl import flags

from mtl_jax.commands import _flags, _program

WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or a,b,c: those of several runs that are averaged; by default, "
    "the network in the package.",
)
IMAGES = flags.DEFINE_string(
    "images", None, "Photographs: a directory, a file or a glob.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Checkpoint: best, latest or a step."
)
TTA = flags.DEFINE_bool(
    "tta",
    None,
    "Average over the flips of each photograph; by default, if the calibration was "
    "fitted so.",
)
CALIBRATION = flags.DEFINE_enum(
    "calibration",
    "auto",
    ["auto", "none"],
    "auto uses what scripts/calibrate.py wrote into the workdir.",
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
    failures, notes = predictions.write(
        _flags.workdirs(WORKDIR),
        IMAGES.value,
        pathlib.Path(OUTPUT.value),
        checkpoint=CHECKPOINT.value,
        tta=TTA.value,
        calibrated=CALIBRATION.value == "auto",
        form="table" if table else "refuge",
    )
    print(f"{OUTPUT.value}/predictions.csv" if table else OUTPUT.value)
    for note in notes:
        _program.warn(note)
    # Standard error has told why, photograph by photograph.
    if failures:
        print(f"Photographs skipped: {len(failures)}.", file=sys.stderr)
    return 1 if failures else 0
