"""Tries learning rates: --config=FILE --directory=DIR --learning_rates=1e-5,1e-4,1e-3.

Trains every method with every learning rate and seed. Figures 2 and 3 of the paper show
the methods single and independent. The command may be repeated, or run several times at
once, like scripts/cross_validate.py.
"""

from absl import flags

from mtl_jax.commands import _experiment, _flags

RATES = flags.DEFINE_list(
    "learning_rates", ["1e-5", "3e-5", "1e-4", "3e-4", "1e-3"], "Rates to try."
)
SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds of each learning rate.")


def main() -> None:
    """Carries out the runs."""
    from mtl_jax.experiments import plan

    _experiment.carry_out(
        "learning_rates", plan.learning_rates, _flags.numbers(RATES), SEEDS.value
    )
