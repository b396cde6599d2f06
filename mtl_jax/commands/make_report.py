"""Writes DIR/report, the report of an experiment: --experiment=DIR."""

import pathlib

from absl import flags

from mtl_jax.commands import _program

EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "Folder of the experiment.", required=True
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of the data sets, if it has moved since the runs."
)
CASE = flags.DEFINE_string(
    "case", None, "Test image for the figures; by default, the hardest glaucoma."
)


def main() -> None:
    """Writes tables, figures and the page, and prints the first table."""
    from mtl_jax.reporting import report

    output, missing = report.write(
        pathlib.Path(EXPERIMENT.value), data_dir=DATA_DIR.value, case=CASE.value
    )
    print((output / "table-model.md").read_text("utf-8"))
    for path in sorted(output.glob("[!.]*")):
        print(path)
    if missing is not None:
        _program.say(f"The report has no photographs and no page: {missing}")
