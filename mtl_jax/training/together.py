"""Several runs in one program: their trees on a leading run axis.

A run by itself has no such axis, and its program is the plain one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def over_runs(function: Callable[..., Any], num_runs: int) -> Callable[..., Any]:
    """Maps a function of one run's trees to all runs at once."""
    return jax.vmap(function) if num_runs > 1 else function


def stack(trees: Sequence[Any], axis: int = 0) -> Any:
    """Joins the trees of runs; host arrays stay in host memory."""
    if len(trees) == 1:
        return trees[0]

    def join(*leaves):
        on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        return (np if on_host else jnp).stack(leaves, axis)

    return jax.tree.map(join, *trees)


def part(tree: Any, index: int, num_runs: int) -> Any:
    """One run's tree out of a stacked one."""
    return tree if num_runs == 1 else jax.tree.map(lambda leaf: leaf[index], tree)
