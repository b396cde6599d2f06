"""Parameters by their paths."""

from collections.abc import Callable
from typing import Any

import jax

# Selects paths such as "encoder/block5_conv2/conv/kernel".
Predicate = Callable[[str], bool]


def choose(
    tree: Any, predicate: Predicate | None
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """Selects leaves of a tree by their paths.

    Args:
      tree: of parameters, or of anything with their paths.
      predicate: selects the leaves; None for all.

    Returns:
      The selected leaves, and a function from a list of as many leaves to a tree in
      which they take the place of the selected ones.

    Raises:
      ValueError: if the tree has leaves and the predicate selects none of them.

    Example:
      >>> from mtl_jax import optim
      >>> tree = {"encoder": {"kernel": 1, "bias": 2}, "head": 3}
      >>> leaves, put_back = optim.choose(tree, lambda path: path == "encoder/bias")
      >>> leaves
      [2]
      >>> put_back([20])
      {'encoder': {'bias': 20, 'kernel': 1}, 'head': 3}
    """
    # Not flax.traverse_util, which refuses trees that are no dict.
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [name(path) for path, _ in paths_and_leaves]
    leaves = [leaf for _, leaf in paths_and_leaves]
    indices = [i for i, n in enumerate(names) if predicate is None or predicate(n)]
    if names and not indices:
        raise ValueError(
            f"the predicate holds for none of the {len(names)} parameters, such as "
            f"{names[0]!r}; it must choose those that the tasks share"
        )

    def put_back(chosen):
        replaced = dict(zip(indices, chosen, strict=True))
        return structure.unflatten([replaced.get(i, x) for i, x in enumerate(leaves)])

    return [leaves[i] for i in indices], put_back


def name(path: jax.tree_util.KeyPath) -> str:
    """The path as text, its parts joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
