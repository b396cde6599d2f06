"""Which part of an initialisation a result hangs on.

Networks begin as PyTorch's layers do (`kaiming_uniform`), but for some of their
parameters, which begin as He et al. 2015 have it (`he_uniform`). All else is a run's.
"""

import copy
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import configuration, metrics, workdirs
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.experiments import results
from mtl_jax.files import write_json
from mtl_jax.training.checkpoints import Checkpoints

# By name, which parameters begin by `he_uniform`: kernels six times as large in
# variance, biases 0.
VARIANTS: dict[str, Callable[[str], bool]] = {
    "none": lambda path: False,
    "heads": lambda path: path.startswith("head_"),
    "trunk": lambda path: not path.startswith("head_"),
    "biases": lambda path: path.endswith("bias"),
    "kernels": lambda path: path.endswith("kernel"),
    "all": lambda path: True,
}

# The cup is what a bad initialisation loses; of less Dice it has not been found.
FOUND = 0.1


def begin(config: configuration.Config, variant: str) -> Any:
    """A network's variables before its training.

    Args:
      config: of the run, of one network; its seed is that of the parameters.
      variant: one of `VARIANTS`.

    Returns:
      `params` and `batch_stats`.
    """
    drawn = {}
    for scheme in ("kaiming_uniform", "he_uniform"):
        one = copy.deepcopy(config)
        one.model.init = scheme
        init = jax.jit(configuration.build(one).model.init)
        drawn[scheme] = init(jax.random.key(config.seed), jnp.zeros((1, 32, 32, 3)))

    def choose(path, ours, theirs):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return theirs if VARIANTS[variant](name.removeprefix("params/")) else ours

    return jax.tree_util.tree_map_with_path(choose, *drawn.values())


def ablate(
    config: configuration.Config,
    directory: pathlib.Path,
    variants: Sequence[str],
    num_seeds: int,
) -> list[dict[str, Any]]:
    """Trains and evaluates a network for each variant and seed.

    What is finished is not done again, what was interrupted goes on.

    Args:
      config: of the runs, but for the seed.
      directory: gets a workdir `VARIANT-seed_N` for each.
      variants: some of `VARIANTS`, none twice.
      num_seeds: from the config's on.

    Raises:
      UserError: for an unsuitable config, or a directory with runs of another.

    Returns:
      For each run `variant`, `seed` and the metrics of validation, on the test split.
    """
    configuration.check(config)
    if config.model.pretrained:
        raise UserError(
            "config.model.pretrained is set, but this is about networks from scratch; "
            "leave it empty."
        )
    rows = []
    for seed in range(config.seed, config.seed + num_seeds):
        for variant in dict.fromkeys(variants):
            workdir = directory / f"{variant}-seed_{seed}"
            one = copy.deepcopy(config)
            one.seed = seed
            if (workdir / results.RESULT).exists():
                workdirs.claim(workdir, one, resume=True)
                rows.append(results.finished(workdir))
                continue
            _train(one, workdir, variant)
            _, found = evaluate.evaluate(workdir)
            row = {"variant": variant, "seed": seed}
            rows.append(row | {name: found[name] for name in metrics.at("validation")})
            write_json(workdir / results.RESULT, rows[-1])
    return rows


def _train(config: configuration.Config, workdir: pathlib.Path, variant: str) -> None:
    if Checkpoints(workdir, read_only=True).latest() is None:
        dataset = pipeline.open_dataset(config.data.data_dir, config.data.dataset)
        workdirs.write_network(
            workdir,
            config,
            **begin(config, variant),
            image_size=pipeline.image_size(dataset),
            origin={"variant": variant},
        )
    workdirs.train(config, workdir, resume=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds as Markdown, and how many runs found the cup."""
    shown = metrics.at("validation")
    heads = ["He-uniform", *(metric.label for metric in shown.values()), "cup found"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = []
        for name, metric in shown.items():
            values = [row[name] for row in own if row[name] is not None]
            text = f"{np.mean(values):.{metric.digits}f}" if values else "-"
            cells.append(text)
        found = sum((row["dice_cup"] or 0) >= FOUND for row in own)
        lines.append(f"| {variant} | {' | '.join(cells)} | {found} of {len(own)} |")
    return "\n".join(lines)
