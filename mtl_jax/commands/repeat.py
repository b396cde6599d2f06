"""Repeats methods with several seeds: --config=FILE --directory=DIR --seeds=3.

Trains every method on the data set's own splits with every seed, from the config's on,
and evaluates it on the test split (Tables 3 and 4 of the paper). Started again, or
several times at once, it goes on as scripts/cross_validate.py does.
"""

from absl import flags

from mtl_jax.commands import _experiment

SEEDS = flags.DEFINE_integer("seeds", 3, "How many.")


def main() -> None:
    """Carries out the runs."""
    from mtl_jax.experiments import plan

    _experiment.carry_out("repeats", plan.repeats, SEEDS.value)
