"""Makes the report of an experiment: --experiment=DIR; it lands in DIR/report."""

import pathlib

from absl import flags

from mtl_jax.commands import _program

EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "Folder of the experiment.", required=True
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where data sets are, if not where the runs had them."
)
CASE = flags.DEFINE_string(
    "case", None, "Test image for the figures of one case; the hardest glaucoma."
)


def main() -> None:
    """Writes tables, figures and the page, and prints the first table."""
    from mtl_jax.reporting import report

    output, missing = report.write(
        pathlib.Path(EXPERIMENT.value), data_dir=DATA_DIR.value, case=CASE.value
    )
    print((output / "table-model.md").read_text())
    for path in sorted(output.iterdir()):
        print(path)
    if missing is not None:
        _program.say(f"Without photographs and page: {missing}")
