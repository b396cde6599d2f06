"""Scores a trained network: --workdir=RUN [--split=test] [--resolution=native]."""

import pathlib

from absl import flags

from mtl_jax.commands import _program

WORKDIR = flags.DEFINE_list(
    "workdir",
    None,
    "Folder of the run, or a,b,c: those of several runs that are averaged.",
    required=True,
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
DATASET = flags.DEFINE_string(
    "dataset", None, "Data set to score, if not the run's own."
)
TTA = flags.DEFINE_bool("tta", False, "Average over the flips of each image.")
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
    from mtl_jax.reporting import evaluation, terminal

    output, metrics = evaluation.write(
        [*map(pathlib.Path, WORKDIR.value)],
        split=SPLIT.value,
        resolution=RESOLUTION.value,
        checkpoint=CHECKPOINT.value,
        data_dir=DATA_DIR.value,
        dataset=DATASET.value,
        tta=TTA.value,
        calibrated=CALIBRATION.value == "auto",
        write_submission=pathlib.Path(SUBMISSION.value) if SUBMISSION.value else None,
    )
    print(terminal.metrics_text(metrics))
    if "note" in metrics:
        _program.warn(metrics["note"])
    for path in sorted(output.iterdir()):
        print(path)
    if SUBMISSION.value:
        print(SUBMISSION.value)
