"""Makes the report of an experiment: --experiment=DIR; it lands in DIR/report."""

import pathlib

from absl import flags

from mtl_jax import cli

EXPERIMENT = flags.DEFINE_string("experiment", None, "Folder of the experiment.")
flags.mark_flags_as_required(["experiment"])


def main() -> None:
    """Writes tables and figures, and prints the first table."""
    from mtl_jax.reporting import report

    output = report.write(pathlib.Path(EXPERIMENT.value))
    print((output / "table-model.md").read_text())
    for path in sorted(output.iterdir()):
        print(path)


if __name__ == "__main__":
    cli.run(main)
