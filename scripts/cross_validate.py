"""Cross-validates methods: --config=FILE --directory=DIR --methods=... --folds=5.

Trains every method on every fold and evaluates it on the test split (Tables 1 and 2 of
the paper). It may be started again, and several times at once: what is finished is not
redone, what was interrupted goes on, and each run is one process's.
"""

from absl import flags

from mtl_jax import cli
from mtl_jax.experiments import command

FOLDS = flags.DEFINE_integer("folds", 5, "Into how many parts images are divided.")


def main() -> None:
    """Carries out the runs."""
    from mtl_jax.experiments import plan

    command.carry_out("cross_validation", plan.cross_validation, FOLDS.value)


if __name__ == "__main__":
    cli.run(main)
