"""Calibrates the probability of glaucoma: --workdir=RUN [--sensitivity=0.9].

It fits temperatures, the weight of the classifier beside the cup-to-disc ratio, and the
threshold of the diagnosis on the validation split, and writes RUN/calibration.json.
scripts/evaluate.py and scripts/predict.py use it for the same workdirs and checkpoint,
and average over flips if it was fitted with --tta.
"""

from absl import flags

from mtl_jax.commands import _flags

WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or a,b,c: those of several runs that are averaged.",
    required=True,
)
SPLIT = flags.DEFINE_string("split", "validation", "Split of the run's data set.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "best", "Checkpoint: best, latest or a step."
)
TTA = flags.DEFINE_bool("tta", False, "Average over the flips of each image.")
SENSITIVITY = flags.DEFINE_float(
    "sensitivity", None, "Sensitivity that the threshold is to reach on the split."
)
SPECIFICITY = flags.DEFINE_float(
    "specificity", None, "Specificity that the threshold is to reach instead."
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of the data sets, if it has moved."
)
ACCEPT_OTHER_DATA = flags.DEFINE_bool(
    "accept_other_data", False, "Use the run's data set although it was built anew."
)


def main() -> None:
    """Calibrates, and prints what was fitted."""
    from mtl_jax.evaluation import calibrate
    from mtl_jax.reporting import terminal

    path, calibration = calibrate.calibrate(
        _flags.workdirs(WORKDIR),
        split=SPLIT.value,
        checkpoint=CHECKPOINT.value,
        tta=TTA.value,
        sensitivity=SENSITIVITY.value,
        specificity=SPECIFICITY.value,
        data_dir=DATA_DIR.value,
        accept_other_data=ACCEPT_OTHER_DATA.value,
    )
    print(terminal.calibration_text(calibration))
    print(path)
