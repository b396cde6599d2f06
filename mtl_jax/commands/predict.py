"""Predicts on photographs: --images=DIR_OR_GLOB --output=OUT [--workdir=RUN].

Without --workdir the network in the package predicts. It is for research only: it is no
medical device.
"""

import pathlib
import sys
from typing import TYPE_CHECKING, cast

from absl import flags

from mtl_jax.commands import _flags, _program
from mtl_jax.errors import UserError

if TYPE_CHECKING:
    from mtl_jax.reporting import handout

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


PICTURES = flags.DEFINE_bool(
    "pictures", True, "Write overlays; --nopictures leaves them out."
)
MASKS = flags.DEFINE_bool("masks", True, "Write masks; --nomasks leaves them out.")
PARQUET = flags.DEFINE_bool(
    "parquet", False, "Write predictions.parquet beside predictions.csv."
)
SHARD = flags.DEFINE_string(
    "shard",
    "1/1",
    "Part of the photographs: 2/8 is the second of eight, as large as the others.",
)
RESUME = flags.DEFINE_bool(
    "resume",
    False,
    "Continue an earlier output: photographs with a row are left out.",
)
REPORT = flags.DEFINE_enum(
    "report",
    None,
    ["pdf", "html"],
    "Write a report to send on, with a cover and a page for each photograph.",
)


def main() -> int:
    """Predicts. Returns the exit code: 1 if a photograph could not be read."""
    from mtl_jax.reporting import predictions, summary

    table = FORMAT.value == "table"
    if not table:
        _refuse_for_submissions()
    if REPORT.value and not PICTURES.value:
        raise UserError("--report shows the pictures; leave out --nopictures.")
    written = predictions.write(
        _flags.workdirs(WORKDIR),
        IMAGES.value,
        pathlib.Path(OUTPUT.value),
        checkpoint=CHECKPOINT.value,
        tta=TTA.value,
        calibrated=CALIBRATION.value == "auto",
        form="table" if table else "refuge",
        pictures=PICTURES.value,
        masks=MASKS.value,
        parquet=PARQUET.value,
        shard=predictions.Shard(*_flags.part(SHARD)),
        resume=RESUME.value,
        report=cast("handout.Form | None", REPORT.value),
    )
    print(f"{OUTPUT.value}/predictions.csv" if table else OUTPUT.value)
    if written.summary:
        print(summary.text(written.summary))
    if written.waiting is not None:
        print(f"The network waited for {written.waiting:.0%} of the time.")
    for note in written.notes:
        _program.warn(note)
    # Standard error has told why, photograph by photograph.
    if written.failures:
        print(f"Photographs skipped: {len(written.failures)}.", file=sys.stderr)
    return 1 if written.failures else 0


def _refuse_for_submissions() -> None:
    for flag, default in ((RESUME, False), (PARQUET, False), (REPORT, None)):
        if flag.value != default:
            raise UserError(f"--format=refuge has no --{flag.name}; leave it out.")
