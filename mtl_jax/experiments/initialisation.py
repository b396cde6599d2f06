"""Tests which part of an initialisation a result depends on.

Each variant initialises some parameters by the rule of He et al. 2015 (`he_uniform`),
and the others by the rule of PyTorch's layers (`kaiming_uniform`).
"""

import copy
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import configuration, files, metrics, workdirs
from mtl_jax.data import pipeline
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.experiments import results
from mtl_jax.files import write_json
from mtl_jax.training.checkpoints import Checkpoints

# The parameters that each variant initialises by `he_uniform`. Its kernels have six
# times the variance, and its biases are 0.
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
    """Initialises the variables of a network.

    Args:
      config: config of a run with one network; its seed seeds the parameters.
      variant: name from `VARIANTS`.

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

    It skips finished runs and continues interrupted ones.

    Args:
      config: config of the runs, except for the seed.
      directory: folder that gets a workdir `VARIANT-seed_N` for each run.
      variants: names from `VARIANTS`.
      num_seeds: number of seeds, starting with the config's.

    Raises:
      UserError: if the config is unsuitable or differs from that of an earlier run.

    Returns:
      For each run `variant`, `seed` and the metrics of validation, on the test split.
    """
    configuration.check(config)
    if config.model.pretrained:
        raise UserError(
            "config.model.pretrained is set, but only networks from scratch have an "
            "initialisation to compare; leave it empty."
        )
    rows: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + num_seeds):
        for variant in dict.fromkeys(variants):
            workdir = directory / f"{variant}-seed_{seed}"
            one = copy.deepcopy(config)
            one.seed = seed
            result = workdir / results.RESULT
            if result.exists():
                workdirs.claim(workdir, one, resume=True)
                rows.append(files.parse_json(result.read_text()))
                continue
            _train(one, workdir, variant)
            _, found = evaluate.evaluate(workdir)
            row = {"variant": variant, "seed": seed}
            rows.append(row | {name: found[name] for name in metrics.at("validation")})
            write_json(result, rows[-1])
    return rows


def _train(config: configuration.Config, workdir: pathlib.Path, variant: str) -> None:
    if Checkpoints(workdir, read_only=True).latest() is None:
        dataset = pipeline.open_dataset(config.data.data_dir, config.data.dataset)
        workdirs.write_network(
            workdir,
            config,
            **begin(config, variant),
            image_size=pipeline.image_size(dataset),
            shape=pipeline.shape(dataset),
            origin={"variant": variant},
        )
    workdirs.train(config, workdir, resume=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats means over the seeds, and how many runs found the cup, as Markdown."""
    shown = metrics.at("validation")
    heads = ["He-uniform", *(metric.label for metric in shown.values()), "cup found"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = []
        for name, metric in shown.items():
            values = [row[name] for row in own if row.get(name) is not None]
            text = f"{np.mean(values):.{metric.digits}f}" if values else "-"
            cells.append(text)
        found = sum((row["dice_cup"] or 0) >= FOUND for row in own)
        lines.append(f"| {variant} | {' | '.join(cells)} | {found} of {len(own)} |")
    return "\n".join(lines)
