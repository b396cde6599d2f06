"""The runs that an experiment consists of.

Protocols of Pascal et al. 2022: cross-validation over folds of the merged training and
validation splits (Tables 1 and 2), repeats of the official splits with several seeds
(Tables 3 and 4), and a study of the learning rate (Figures 2 and 3).
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

from mtl_jax import configuration
from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, and what distinguishes it from the others of its experiment.

    Attributes:
      method: one of `methods.METHODS`.
      fold: `official`, or the number of the fold held out for validation.
      seed: of initialisation, order of the images and everything else that is random.
      learning_rate: of the optimizer.
      config: of the training.
    """

    method: str
    fold: str
    seed: int
    learning_rate: float
    config: configuration.Config

    @property
    def name(self) -> str:
        """Of its folder in the experiment's directory."""
        return run_name(self.method, self.fold, self.seed, self.learning_rate)


def run_name(method: str, fold: str, seed: int, learning_rate: float) -> str:
    """Name of the folder of a run, see `Run`."""
    return f"{method}-fold_{fold}-seed_{seed}-lr_{learning_rate:g}"


def cross_validation(
    config: configuration.Config,
    methods: Sequence[str],
    num_folds: int,
    rates: Mapping[str, Sequence[float]] | None = None,
    folds: Iterable[int] | None = None,
) -> list[Run]:
    """A run of every method on every fold; the config is given their number.

    The seed of fold k is the config's plus k: the spread over the folds is that of the
    initialisation too.

    Args:
      config: of the runs.
      methods: some of `methods.METHODS`.
      num_folds: that the images are divided into.
      rates: by method its learning rates; None for the config's.
      folds: which of them; None for all.
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
    """A run of every method with every seed, from the config's own on.

    Raises:
      UserError: unless the config is of the official splits.
    """
    if config.data.fold != "official":
        raise UserError(
            f"config.data.fold is {config.data.fold!r}, but repeats are of the "
            "official splits; leave it out, or cross-validate."
        )
    seeds = range(config.seed, config.seed + num_seeds)
    return _runs(config, methods, seeds=seeds)


def learning_rates(
    config: configuration.Config,
    methods: Sequence[str],
    rates: Sequence[float],
    num_seeds: int,
) -> list[Run]:
    """A run of every method with every learning rate and every seed."""
    seeds = range(config.seed, config.seed + num_seeds)
    return _runs(config, methods, seeds=seeds, rates=rates)


def share(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """The runs of one of several machines, which together make all of them.

    Raises:
      UserError: unless 0 <= index < count.
    """
    if not 0 <= index < count:
        raise UserError(
            f"--shard={index}/{count} is none of 0/{count} to {count - 1}/{count}."
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
    """Every combination; what is not given is as in the config."""
    combinations = itertools.product(
        [config.data.fold] if folds is None else folds,
        [config.seed] if seeds is None else seeds,
        [config.optimizer.learning_rate] if rates is None else rates,
        # Methods last: what is finished first can be compared.
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
        raise UserError("There is nothing to run; name at least one of everything.")
    if len({run.name for run in runs}) < len(runs):
        raise UserError(
            "Two of the runs are the same; name no method and no learning rate twice."
        )
    return runs


def _config_of(config: configuration.Config, method: str) -> configuration.Config:
    config = copy.deepcopy(config)
    config.method.name = method
    if method == "two_stage":
        # Res34-Unet, whatever the encoder of the others.
        if config.model.encoder != "resnet34":
            # Weights of their encoder would not fit.
            pretrained = config.model.pretrained
            own = config.method.two_stage_pretrained
            if pretrained and not own:
                raise UserError(
                    f"config.model.pretrained is {pretrained}, the weights of another "
                    "encoder than two_stage's; import its own by "
                    "scripts/import_weights.py --architecture=resnet34 and name their "
                    "folder by --config.method.two_stage_pretrained, or leave "
                    "two_stage out of --methods."
                )
            config.model.pretrained = own if pretrained else ""
        config.model.encoder = "resnet34"
        config.tasks = ("disc", "cup")
        config.evaluation.score = "mean"
    return config
