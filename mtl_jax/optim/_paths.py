"""Parameters by their paths."""

from collections.abc import Callable
from typing import Any

import jax

# Says of a path such as "encoder/block5_conv2/conv/kernel" whether it is meant.
Predicate = Callable[[str], bool]


def choose(
    tree: Any, predicate: Predicate | None
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """Takes some leaves of a tree.

    Args:
      tree: of parameters, or of anything with their paths.
      predicate: says which; None for all leaves.

    Returns:
      The leaves, and a function that puts others in their place: from leaves to a tree.

    Raises:
      ValueError: if the tree has leaves and the predicate holds for none of them.

    Example:
      >>> from mtl_jax import optim
      >>> tree = {"encoder": {"kernel": 1, "bias": 2}, "head": 3}
      >>> leaves, put_back = optim.choose(tree, lambda path: path == "encoder/bias")
      >>> leaves
      [2]
      >>> put_back([20])
      {'encoder': {'bias': 20, 'kernel': 1}, 'head': 3}
    """
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [name(path) for path, _ in paths_and_leaves]
    leaves = [leaf for _, leaf in paths_and_leaves]
    places = [i for i, n in enumerate(names) if predicate is None or predicate(n)]
    if names and not places:
        raise ValueError(
            f"the predicate holds for none of the {len(names)} parameters, such as "
            f"{names[0]!r}; it must choose those that the tasks share"
        )

    def put_back(chosen):
        replaced = dict(zip(places, chosen, strict=True))
        return structure.unflatten([replaced.get(i, x) for i, x in enumerate(leaves)])

    return [leaves[i] for i in places], put_back


def name(path: jax.tree_util.KeyPath) -> str:
    """A path as text, its parts divided by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
