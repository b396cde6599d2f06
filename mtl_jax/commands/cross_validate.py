"""Cross-validates methods: --config=FILE --directory=DIR --methods=... --folds=5.

Trains every method on every fold and evaluates it on the test split (Tables 1 and 2 of
the paper). It may be started again, and several times at once: what is finished is not
redone, what was interrupted goes on, and each run is one process's. With
--learning_rates=3e-3,1e-2,3e-2 each method has its own.
"""

import pathlib

from absl import flags

from mtl_jax.commands import _experiment, _flags
from mtl_jax.errors import UserError

FOLDS = flags.DEFINE_integer("folds", 5, "Into how many parts images are divided.")
RATES = flags.DEFINE_list(
    "learning_rates",
    [],
    "To try on the first fold; each method goes on to the other folds with that of its "
    "best validation score.",
)


def main() -> None:
    """Carries out the runs."""
    from mtl_jax.experiments import execution, plan, results

    rates = _flags.numbers(RATES)
    if not rates:
        _experiment.carry_out("cross_validation", plan.cross_validation, FOLDS.value)
        return
    if _experiment.SHARD.value != "0/1":
        raise UserError(
            "--shard does not go with --learning_rates, as all runs of the first fold "
            "must be known before the others; start the command once for each machine."
        )
    methods, failure, elsewhere = _experiment.METHODS.value, None, 0
    try:
        elsewhere = _experiment.carry_out(
            "cross_validation",
            plan.cross_validation,
            FOLDS.value,
            dict.fromkeys(methods, rates),
            [0],
        )
    except execution.RunsFailed as error:
        # A rate that is too large is not chosen, and stops nothing.
        failure = error
    if elsewhere:
        print("The other folds wait for the first; start this again when it is done.")
        return
    rows = results.read(pathlib.Path(_experiment.DIRECTORY.value))
    best = results.best_rates([r for r in rows if r["learning_rate"] in rates])
    if lacking := [method for method in methods if method not in best]:
        raise failure or UserError(
            f"{', '.join(lacking)} has no validation score to choose a learning rate "
            "by; cross-validate it in a directory of its own."
        )
    for method in methods:
        print(f"{method}: learning rate {best[method]:g}")
    _experiment.carry_out(
        "cross_validation",
        plan.cross_validation,
        FOLDS.value,
        {method: [best[method]] for method in methods},
        range(1, FOLDS.value),
    )
    if failure:
        raise failure
