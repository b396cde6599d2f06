"""Trees whose leaves have a leading task axis, [N, *shape of the parameter]."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

# Bytes of a block that a CPU multiplies at once.
_BLOCK = 2**17

# Up to so many tasks' products are sums in columns on a CPU. Those of more would take
# seconds to compile.
_FEW = 16

# Pairs of tasks in one loop: XLA would split more over two cores, which takes longer.
_AT_ONCE = 72

# So many rows have a sum of their own: a longer one would round more.
_CHUNK = 3072


def num_tasks(updates: optax.Updates, params: optax.Params | None = None) -> int | None:
    """Length of the task axis.

    Args:
      updates: gradients with a leading task axis.
      params: if given, the leaves' other axes are compared with them.

    Returns:
      N, or None for a tree without leaves. `optax.multi_transform` hands such a tree
      to a group that no parameter belongs to.

    Raises:
      ValueError: if the leaves do not have one task axis in common.
    """
    leaves = jax.tree.leaves(updates)
    if not leaves:
        return None
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    plain = params is not None and any(
        leaf.shape[1:] != param.shape
        for leaf, param in zip(leaves, jax.tree.leaves(params), strict=True)
    )
    if len(lengths) > 1 or None in lengths or plain:
        raise ValueError(
            "every gradient must have a leading task axis, [N, *shape of its "
            f"parameter], got shapes {sorted({leaf.shape for leaf in leaves})}; an "
            "aggregator stands first in an optax.chain"
        )
    return lengths.pop()


def check_num_tasks(n: int | None, expected: int) -> None:
    """Raises a ValueError if n is neither None nor the expected number of tasks."""
    if n not in (None, expected):
        raise ValueError(
            f"the gradients are of {n} tasks, the optimizer is for {expected}"
        )


def gram(updates: optax.Updates) -> jax.Array:
    """Inner products [N, N] of the task gradients, see `inner_products`."""
    return _inner_products(updates)


def inner_products(first: optax.Updates, second: optax.Updates) -> jax.Array:
    """Inner products [N, N] of the first's gradients (rows) and the second's.

    At least float32. Nothing is rescaled. The squares of norms from 1e-15 to 1e15 are
    normal numbers of float32, and so are those of the elements of 1e7 equal parameters.
    """
    return _inner_products(first, second)


def _inner_products(*trees: optax.Updates) -> jax.Array:
    """Inner products of two trees, or of one with itself."""

    def of_leaf(*leaves):
        if _is_sharded_explicitly(leaves[0]):
            return _product(*leaves)
        matrices = [leaf.reshape(len(leaf), -1) for leaf in leaves]
        if matrices[0].nbytes < 2 * _BLOCK:
            return _product(*matrices)
        few = len(leaves[0]) <= _FEW
        return lax.platform_dependent(
            *matrices,
            cpu=_product_in_columns if few else _product_in_blocks,
            default=_product,
        )

    products = jax.tree.leaves(jax.tree.map(of_leaf, *trees))
    return functools.reduce(jnp.add, products)


def _is_sharded_explicitly(leaf: jax.Array) -> bool:
    """Whether a mesh of `jax.sharding.AxisType.Explicit` is part of the leaf's type.

    Then its axes cannot be merged, and a sum over them is to say where it lies.
    """
    return any(axis is not None for axis in jax.typeof(leaf).sharding.spec)


def _product(*leaves: jax.Array) -> jax.Array:
    """Inner products [N, N] of one or two leaves, on all devices."""
    first, second = leaves[0], leaves[-1]
    axes, whole = tuple(range(1, first.ndim)), None
    if _is_sharded_explicitly(first):
        mesh = jax.typeof(first).sharding.mesh
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return lax.dot_general(
        first,
        second,
        ((axes, axes), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=accumulator(first),
        out_sharding=whole,
    )


def _product_in_blocks(*matrices: jax.Array) -> jax.Array:
    """As `_product`, by blocks of columns, which stay in the cache of a CPU."""
    first = matrices[0]
    columns = max(_BLOCK * first.shape[1] // first.nbytes, 1)
    whole = first.shape[1] // columns * columns

    def add(total, start):
        blocks = (
            lax.dynamic_slice_in_dim(matrix, start, columns, axis=1)
            for matrix in matrices
        )
        return total + _product(*blocks), None

    rest = _product(*(matrix[:, whole:] for matrix in matrices))
    return lax.scan(add, rest, jnp.arange(0, whole, columns))[0]


def _product_in_columns(*matrices: jax.Array) -> jax.Array:
    """As `_product`, by sums in columns of blocks that fit the first cache of a CPU."""
    n, size = matrices[0].shape
    is_symmetric = len(matrices) == 1
    # Each row is a user of the block. XLA (jax 0.10) stores what has so many users, and
    # multiplies element by element what it does not store.
    num_rows = 12 if is_symmetric else 18
    columns = 16 if is_symmetric and n <= 4 else 8
    block = num_rows * columns
    num_chunks = -(-size // (_CHUNK * columns))
    num_blocks = size // (num_chunks * block)

    # Task i is multiplied by tasks i, i + 1, ... around the circle. If these are of its
    # own tree, half of the circle has all pairs.
    num_partners = n // 2 + 1 if is_symmetric else n
    step = _AT_ONCE // num_partners
    groups = [slice(k, k + step) for k in range(0, n, step)]

    # Of the matrices' type: it says over which devices of a `jax.shard_map` they vary.
    zeros = functools.reduce(
        jnp.add,
        [
            jnp.zeros_like(matrix, accumulator(matrix), (n, num_partners, columns))
            for matrix in matrices
        ],
    )

    def add_block(sums, start):
        rows = [
            jnp.split(
                widened(lax.dynamic_slice_in_dim(matrix, start, block, axis=1)),
                num_rows,
                axis=1,
            )
            for matrix in matrices
        ]

        def added(sums, group):
            # One by one: sums of a few products of the smallest gradients may be no
            # normal numbers.
            products = (
                x[group, None] * _around(y)[group, :num_partners]
                for x, y in zip(rows[0], rows[-1], strict=True)
            )
            return functools.reduce(jnp.add, products, sums)

        return list(map(added, sums, groups)), None

    def add_chunk(total, starts):
        sums, _ = lax.scan(add_block, [zeros[group] for group in groups], starts)
        return total + jnp.concatenate(sums).sum(-1), None

    starts = block * jnp.arange(num_chunks * num_blocks).reshape(num_chunks, num_blocks)
    total, _ = lax.scan(add_chunk, zeros.sum(-1), starts)

    rest = _product(*(matrix[:, starts.size * block :] for matrix in matrices))
    tasks = jnp.arange(n)[:, None]
    partners = _around(jnp.arange(n))[:, :num_partners]
    product = jnp.zeros_like(rest).at[tasks, partners].set(total)
    if is_symmetric:
        product = product.at[partners, tasks].set(total)
    return product + rest


def _around(values: jax.Array) -> jax.Array:
    """[N, N + 1, ...] of [N, ...], with values[(i + k) % N] at [i, k].

    Each row of the copies begins one element later. An array of indices or `jnp.roll`
    would take longer.
    """
    n, *shape = values.shape
    copies = jnp.broadcast_to(values, (n + 1, n, *shape))
    return copies.reshape(n, n + 1, *shape)


def norms_and_cosines(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Norms [N] and cosines [N, N] of the gradients, by `gram`; 0 for one of zero."""
    norm = jnp.sqrt(jnp.diagonal(gram))
    product = norm[:, None] * norm
    is_zero = product == 0
    return norm, jnp.where(is_zero, 0, gram / jnp.where(is_zero, 1, product))


def norms(updates: optax.Updates) -> jax.Array:
    """Norms [N] of the task gradients, at least float32; the range is that of `gram`.

    On a CPU this takes a tenth of the time of `gram`.
    """
    squares = [
        jnp.square(widened(leaf)).sum(tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(updates)
    ]
    return jnp.sqrt(functools.reduce(jnp.add, squares))


def scale(weights: jax.Array, updates: optax.Updates) -> optax.Updates:
    """Multiplies task k's gradient by weights[k]; dtypes stay."""
    return jax.tree.map(
        lambda leaf: (along(weights, leaf) * widened(leaf)).astype(leaf.dtype), updates
    )


def rounding(gram: jax.Array) -> float:
    """N eps, the relative size of what may be rounding in sums over the matrix."""
    return len(gram) * float(jnp.finfo(gram.dtype).eps)


def inverse(values: jax.Array) -> jax.Array:
    """1 / x, or 0 where x is 0 or below."""
    return jnp.where(values <= 0, 0, 1 / jnp.where(values <= 0, 1, values))


def combine(weights: jax.Array, updates: optax.Updates) -> optax.Updates:
    """sum_k weights[k] g_k without the task axis, added in float32; dtypes stay."""

    # Products and a sum rather than a matrix product, for which an accelerator rounds
    # the operands to fewer bits. XLA makes one pass of them if each task has its own:
    # products of all tasks at once it would store, from some eight tasks on.
    def of_leaf(leaf):
        rows = [weights[k] * widened(leaf[k]) for k in range(len(leaf))]
        return functools.reduce(jnp.add, rows).astype(leaf.dtype)

    return jax.tree.map(of_leaf, updates)


def total(leaf: jax.Array) -> jax.Array:
    """The sum over the task axis."""
    # XLA's own reduction over a first axis takes five times as long on a CPU.
    return functools.reduce(jnp.add, [leaf[k] for k in range(len(leaf))])


def of_active(active: Any, updates: optax.Updates) -> optax.Updates:
    """The gradients with zeros for tasks that are not active, whatever theirs are.

    Zeros take their place. A product would keep what is not finite.

    Args:
      active: bool [N], or None for all tasks.
      updates: gradients with a leading task axis.
    """
    if active is None:
        return updates
    zeros = jax.tree.map(jnp.zeros_like, updates)
    return select(jnp.asarray(active), updates, zeros)


def select(which: jax.Array, chosen: Any, other: Any) -> Any:
    """Task k's part of `chosen` where which[k], else its part of `other`."""
    return jax.tree.map(lambda a, b: jnp.where(along(which, a), a, b), chosen, other)


def zeros(params: optax.Params, n: int) -> optax.Updates:
    """Zeros with a leading axis of n tasks, in the dtype of sums."""
    return jax.tree.map(
        lambda leaf: jnp.zeros((n, *jnp.shape(leaf)), accumulator(jnp.asarray(leaf))),
        params,
    )


def init_stacked(
    tx: optax.GradientTransformation, params: optax.Params, n: int
) -> optax.OptState:
    """Fresh states of `tx` for n tasks, stacked on a leading axis."""
    return jax.vmap(lambda _: tx.init(params), axis_size=n)(jnp.arange(n))


def take(stacked: Any, index: jax.Array) -> Any:
    """The part of one task of a stacked tree."""
    return jax.tree.map(
        lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked
    )


def put(stacked: Any, index: jax.Array, part: Any) -> Any:
    """A stacked tree with the part of one task replaced.

    A loop that carries stacked states replaces them in place, if a conditional computes
    the new part. As scanned input and output they would need their memory twice.
    """
    return jax.tree.map(
        lambda leaf, x: lax.dynamic_update_index_in_dim(leaf, x, index, 0),
        stacked,
        part,
    )


def step_active(
    tx: optax.GradientTransformation,
    gradient: jax.Array,
    state: optax.OptState,
    values: jax.Array,
    active: jax.Array,
) -> tuple[jax.Array, optax.OptState]:
    """Steps the active tasks' values [N], each with its own state of `tx`."""
    steps, new_state = jax.vmap(tx.update)(gradient, state, values)
    stepped = optax.apply_updates(values, steps)
    return select(active, (stepped, new_state), (values, state))


def accumulator(leaf: jax.Array) -> jnp.dtype:
    """The dtype of sums, at least float32."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def widened(leaf: jax.Array) -> jax.Array:
    """The leaf in the dtype of sums."""
    return leaf.astype(accumulator(leaf))


def along(vector: jax.Array, leaf: jax.Array) -> jax.Array:
    """A vector [N] as an array that multiplies a leaf [N, ...]."""
    return vector.reshape(-1, *(1,) * (leaf.ndim - 1))
