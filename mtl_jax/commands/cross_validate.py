"""Cross-validates methods: --config=FILE --directory=DIR --methods=... --folds=5.

Trains every method on every fold and evaluates it on the test split (Tables 1 and 2 of
the paper). Several processes may share the directory; each run has one process. If
repeated, the command skips finished runs and continues interrupted ones. With
--learning_rates=3e-3,1e-2,3e-2 each method uses the best of these rates.
"""

import pathlib

from absl import flags

from mtl_jax.commands import _experiment, _flags
from mtl_jax.errors import UserError

FOLDS = flags.DEFINE_integer("folds", 5, "Number of folds.")
RATES = flags.DEFINE_list(
    "learning_rates",
    [],
    "Learning rates to try on the first fold. Each method trains the other folds with "
    "the rate of its best validation score.",
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
            "--shard cannot be used with --learning_rates, because the first fold must "
            "be finished before the others; start the command without it on each "
            "machine."
        )
    methods, failure, elsewhere = _experiment.method_names(), None, 0
    try:
        elsewhere = _experiment.carry_out(
            "cross_validation",
            plan.cross_validation,
            FOLDS.value,
            dict.fromkeys(methods, rates),
            [0],
        )
    except execution.RunsFailed as error:
        # A run with too large a rate may fail. The others continue without it.
        failure = error
    if elsewhere:
        print("The other folds need the first; repeat this when it is finished.")
        return
    rows = results.read(pathlib.Path(_experiment.DIRECTORY.value))
    best = results.best_rates([r for r in rows if r["learning_rate"] in rates])
    if lacking := [method for method in methods if method not in best]:
        raise failure or UserError(
            f"{', '.join(lacking)} has no validation score to choose a learning rate "
            "by; cross-validate it without --learning_rates in its own directory."
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
