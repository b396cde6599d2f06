"""Scores a trained network: --workdir=RUN [--split=test] [--resolution=native].

Without --workdir it scores the network in the package. This network, and one that was
exported, needs --data_dir, --dataset and --output.
"""

import pathlib

from absl import flags

from mtl_jax.commands import _flags, _program

WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or a,b,c: those of several runs that are averaged; by default, "
    "the network in the package.",
)
SPLIT = flags.DEFINE_string("split", "test", "Split of the data set.")
RESOLUTION = flags.DEFINE_enum(
    "resolution",
    "model",
    ["model", "native"],
    "Resolution of the masks that are compared.",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Checkpoint: best, latest or a step."
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of the data sets, if it has moved."
)
ACCEPT_OTHER_DATA = flags.DEFINE_bool(
    "accept_other_data", False, "Use the run's data set although it was built anew."
)
DATASET = flags.DEFINE_string(
    "dataset", None, "Data set to score, if not the run's own."
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write; by default, one in the workdir."
)
TTA = flags.DEFINE_bool(
    "tta",
    None,
    "Average over the flips of each image; by default, if the calibration was fitted "
    "so.",
)
CALIBRATION = flags.DEFINE_enum(
    "calibration",
    "auto",
    ["auto", "none"],
    "auto uses what scripts/calibrate.py wrote into the workdir.",
)
SUBMISSION = flags.DEFINE_string(
    "write_submission", None, "Folder for a submission to the REFUGE challenge."
)


def main() -> None:
    """Evaluates and prints the table."""
    from mtl_jax.evaluation.evaluate import brief
    from mtl_jax.reporting import evaluation, terminal

    output, metrics = evaluation.write(
        _flags.workdirs(WORKDIR),
        split=SPLIT.value,
        resolution=RESOLUTION.value,
        checkpoint=CHECKPOINT.value,
        data_dir=DATA_DIR.value,
        accept_other_data=ACCEPT_OTHER_DATA.value,
        dataset=DATASET.value,
        output=pathlib.Path(OUTPUT.value) if OUTPUT.value else None,
        tta=TTA.value,
        calibrated=CALIBRATION.value == "auto",
        write_submission=pathlib.Path(SUBMISSION.value) if SUBMISSION.value else None,
    )
    print(terminal.metrics_text(metrics))
    if "note" in metrics:
        _program.warn(metrics["note"])
    if seen := metrics.get("trained_on"):
        _program.warn(
            f"The network was trained on {len(seen)} of the photographs that are "
            f"scored ({brief(seen)}), so that the scores are too good."
        )
    for path in sorted(output.glob("[!.]*")):
        print(path)
    if SUBMISSION.value:
        print(SUBMISSION.value)
