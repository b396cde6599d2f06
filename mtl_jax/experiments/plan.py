"""Plans the runs of an experiment.

The protocols are those of Pascal et al. 2022: cross-validation over folds of the merged
training and validation splits (Tables 1 and 2), repeats on the official splits with
several seeds (Tables 3 and 4), and a study of the learning rate (Figures 2 and 3).
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

from mtl_jax import configuration
from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, and what distinguishes it from the others of its experiment.

    Attributes:
      method: name from `methods.METHODS`.
      fold: `official`, or the number of the fold held out for validation.
      seed: seed of the initialisation, the image order and all other randomness.
      learning_rate: learning rate of the optimizer.
      config: config of the run.
    """

    method: str
    fold: str
    seed: int
    learning_rate: float
    config: configuration.Config

    @property
    def name(self) -> str:
        """Name of the run's folder in the experiment's directory."""
        return run_name(self.method, self.fold, self.seed, self.learning_rate)


def run_name(method: str, fold: str, seed: int, learning_rate: float) -> str:
    """Names the folder of a run; see `Run` for the arguments."""
    return f"{method}-fold_{fold}-seed_{seed}-lr_{learning_rate:g}"


def cross_validation(
    config: configuration.Config,
    methods: Sequence[str],
    num_folds: int,
    rates: Mapping[str, Sequence[float]] | None = None,
    folds: Iterable[int] | None = None,
) -> list[Run]:
    """Plans a run of every method on every fold, and sets the config's `num_folds`.

    The seed of fold k is the config's seed plus k. The spread over the folds therefore
    includes that of the initialisation.

    Args:
      config: config of the runs.
      methods: names from `methods.METHODS`.
      num_folds: number of folds that the images are divided into.
      rates: learning rates of each method; None for the config's.
      folds: folds to run; None for all.
    """
    config.data.num_folds = num_folds
    runs = []
    for fold in range(num_folds) if folds is None else folds:
        for method in methods:
            own = None if rates is None else rates[method]
            seeds = [config.seed + fold]
            runs += _runs(config, [method], folds=[str(fold)], seeds=seeds, rates=own)
    return _checked(runs)


def repeats(
    config: configuration.Config, methods: Sequence[str], num_seeds: int
) -> list[Run]:
    """Plans a run of every method with every seed, starting with the config's.

    Raises:
      UserError: if the config does not use the official splits.
    """
    if config.data.fold != "official":
        raise UserError(
            f"config.data.fold is {config.data.fold!r}, but repeats use the official "
            "splits; leave it out, or cross-validate."
        )
    seeds = range(config.seed, config.seed + num_seeds)
    return _runs(config, methods, seeds=seeds)


def learning_rates(
    config: configuration.Config,
    methods: Sequence[str],
    rates: Sequence[float],
    num_seeds: int,
) -> list[Run]:
    """Plans a run of every method with every learning rate and every seed."""
    seeds = range(config.seed, config.seed + num_seeds)
    return _runs(config, methods, seeds=seeds, rates=rates)


def share(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """Selects every `count`-th run, starting with the run at `index`.

    Raises:
      UserError: unless 0 <= index < count.
    """
    if not 0 <= index < count:
        raise UserError(
            f"--shard={index}/{count} must be one of 0/{count} to {count - 1}/{count}."
        )
    return list(runs[index::count])


def _runs(
    config: configuration.Config,
    methods: Sequence[str],
    *,
    folds: Sequence[str] | None = None,
    seeds: Iterable[int] | None = None,
    rates: Sequence[float] | None = None,
) -> list[Run]:
    """Plans a run of every combination; the config gives what is None."""
    combinations = itertools.product(
        [config.data.fold] if folds is None else folds,
        [config.seed] if seeds is None else seeds,
        [config.optimizer.learning_rate] if rates is None else rates,
        # Methods vary fastest, so that the first finished runs can be compared.
        methods,
    )
    runs = []
    for fold, seed, rate, method in combinations:
        one = _config_of(config, method)
        one.data.fold, one.seed, one.optimizer.learning_rate = fold, seed, rate
        configuration.check(one)
        runs.append(Run(method, fold, seed, rate, one))
    return _checked(runs)


def _checked(runs: list[Run]) -> list[Run]:
    if not runs:
        raise UserError("There is nothing to run; name a method, a rate and a seed.")
    if len({run.name for run in runs}) < len(runs):
        raise UserError(
            "Two runs are the same; name each method and each learning rate once."
        )
    return runs


def _config_of(config: configuration.Config, method: str) -> configuration.Config:
    config = copy.deepcopy(config)
    config.method.name = method
    if method == "two_stage":
        # Res34-Unet always has this encoder.
        if config.model.encoder != "resnet34":
            # The weights of the other methods' encoder would not fit.
            pretrained = config.model.pretrained
            own = config.method.two_stage_pretrained
            if pretrained and not own:
                raise UserError(
                    f"config.model.pretrained is {pretrained}, which does not fit the "
                    "encoder of two_stage; import its weights with "
                    "scripts/import_weights.py --architecture=resnet34 and name their "
                    "folder with --config.method.two_stage_pretrained, or leave "
                    "two_stage out of --methods."
                )
            config.model.pretrained = own if pretrained else ""
        config.model.encoder = "resnet34"
        config.tasks = ("disc", "cup")
        config.evaluation.score = "mean"
    return config
