"""Repeats methods with several seeds: --config=FILE --directory=DIR --seeds=3.

Trains every method on the official splits with each of several seeds, starting with the
config's, and evaluates it on the test split (Tables 3 and 4 of the paper). The command
may be repeated, or run several times at once, like scripts/cross_validate.py.
"""

from absl import flags

from mtl_jax.commands import _experiment

SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.")


def main() -> None:
    """Carries out the runs."""
    from mtl_jax.experiments import plan

    _experiment.carry_out("repeats", plan.repeats, SEEDS.value)
