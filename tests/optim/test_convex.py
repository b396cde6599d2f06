"""The small convex problems beside Clarabel, an interior point method in Rust.

Clarabel is no dependency; `.ci/run` installs it with TorchJD.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import sparse

from mtl_jax.optim import _convex

clarabel = pytest.importorskip(
    "clarabel", reason="Clarabel, a second opinion on convex problems, is not installed"
)

SIZES = (2, 4, 8, 16, 64)
# With the number of gradients, the dimension that they are in.
RANDOM = {
    "square": lambda n: n,
    "tall": lambda n: 2 * n,
    "wide": lambda n: 10 * n,
    "aligned": lambda n: 2 * n,
}
DEGENERATE = {
    "equal": lambda n: 2 * n,
    "nearly equal": lambda n: 2 * n,
    "opposite": lambda n: 2 * n,
    "rank one": lambda n: 1,
    "rank two": lambda n: 2,
    "more than dimensions": lambda n: max(n // 2, 1),
    "orthogonal": lambda n: n,
}


def gram(kind, n, rng):
    """The cosines of n gradients."""
    rows = rng.normal(size=(n, (RANDOM | DEGENERATE)[kind](n)))
    if kind == "aligned":
        rows += rng.normal(size=rows.shape[1])
    if kind == "equal":
        rows[:] = rows[0]
    if kind == "nearly equal":
        rows = rows[0] + 1e-3 * rows
    if kind == "opposite":
        rows[1::2] = -rows[::2]
    if kind == "orthogonal":
        rows = np.eye(n)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


@functools.cache
def grams(n):
    """200 random and 40 degenerate matrices, and which are random."""
    rng = np.random.default_rng(n)
    kinds = [list(RANDOM)[i % len(RANDOM)] for i in range(200)]
    kinds += [list(DEGENERATE)[i % len(DEGENERATE)] for i in range(40)]
    return np.stack([gram(kind, n, rng) for kind in kinds]), np.arange(240) < 200


def vectors(n):
    """Nonnegative combinations, one for each matrix, of one element to all."""
    u = np.random.default_rng(n).exponential(size=(240, n)) ** 3
    return u / u.max(1, keepdims=True)


def clarabel_minimum(quadratic, linear, matrix, bounds, cones):
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    problem = [sparse.csc_matrix(quadratic), linear, sparse.csc_matrix(matrix), bounds]
    return clarabel.DefaultSolver(*problem, cones, settings).solve().obj_val


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("problem", ["dual cone", "simplex"])
def test_nonnegative_qp(problem, n):
    matrices, _ = grams(n)
    if problem == "simplex":
        matrices, linears = matrices + 1, np.ones((240, n))
    else:
        linears = -np.einsum("bij,bj->bi", matrices, vectors(n))
    solve = jax.jit(jax.vmap(_convex.nonnegative_qp))
    found = solve(np.float32(matrices), np.float32(linears))
    assert found.dtype == jnp.float32
    for matrix, linear, x in zip(
        *map(np.float64, (matrices, linears, found)), strict=True
    ):
        tolerance = 1e-6 * max(1, np.abs(linear).max(), x.sum())
        slope = matrix @ x - linear
        assert np.abs(np.minimum(x, slope)).max() < tolerance
        minimum = clarabel_minimum(
            matrix, -linear, -np.eye(n), np.zeros(n), [clarabel.NonnegativeConeT(n)]
        )
        value = x @ matrix @ x / 2 - linear @ x
        assert value - minimum < tolerance * max(1, x.sum())


def best_in_ball_by_clarabel(rows, linear, radius):
    """Maximises t with rows d + b >= t in |d| <= r."""
    n, size = rows.shape
    matrix = np.block(
        [
            [-rows, np.ones((n, 1))],
            [np.zeros((1, size + 1))],
            [-np.eye(size), np.zeros((size, 1))],
        ]
    )
    return -clarabel_minimum(
        np.zeros((size + 1, size + 1)),
        np.append(np.zeros(size), -1.0),
        matrix,
        np.concatenate([linear, [radius], np.zeros(size)]),
        [clarabel.NonnegativeConeT(n), clarabel.SecondOrderConeT(size + 1)],
    )


@pytest.mark.parametrize("n", SIZES[::2])
def test_best_in_ball(n):
    cosines, is_random = grams(n)
    linears = np.einsum("bij,bj->bi", cosines, vectors(n))
    linears /= np.sqrt(np.einsum("bi,bi->b", linears, vectors(n)))[:, None] + 1e-3
    ones = np.ones(n, np.float32)
    solve = jax.jit(jax.vmap(lambda g, b: _convex.best_in_ball(g, ones, b, 0.4)))
    # Clarabel takes a while for 64. No multiple of the number of kinds.
    chosen = slice(None, None, 11 if n == 64 else 1)
    cosines, linears, is_random = cosines[chosen], linears[chosen], is_random[chosen]
    found = np.float64(solve(np.float32(cosines), np.float32(linears)))
    for case in zip(cosines, linears, found, is_random, strict=True):
        matrix, linear, v, random = case
        squares, basis = np.linalg.eigh(matrix)
        rows = basis * np.sqrt(np.maximum(squares, 0))
        assert v @ matrix @ v < 0.4**2 + 1e-6
        value = (matrix @ v + linear).min()
        maximum = best_in_ball_by_clarabel(rows, linear, 0.4)
        assert maximum - value < (2e-6 if random else 3e-4)


@pytest.mark.parametrize("n", SIZES[::2])
def test_fair_point(n):
    matrices, is_random = grams(n)
    solve = jax.jit(jax.vmap(_convex.fair_point, (0, None)))
    for alpha in (0.5, 1.0, 2.0):
        w = np.float64(solve(np.float32(matrices), alpha))
        gains = np.einsum("bij,bj->bi", matrices, w)
        size = np.einsum("bij,bj->bi", np.abs(matrices), w)
        assert (w > 0).all()
        # The error of the equation, of the terms that it adds up.
        assert (np.abs(gains - w ** (-1 / alpha)) < 1.5e-6 * size).all()
        easy = is_random & (size < 100 * gains).all(1)
        assert easy.sum() > 150
        np.testing.assert_allclose(gains[easy], w[easy] ** (-1 / alpha), rtol=1e-4)


def test_in_64_bits():
    with jax.enable_x64(True):
        matrices, _ = grams(8)
        linears = -np.einsum("bij,bj->bi", matrices, vectors(8))
        x = np.asarray(jax.jit(jax.vmap(_convex.nonnegative_qp))(matrices, linears))
        w = np.asarray(jax.jit(jax.vmap(_convex.fair_point, (0, None)))(matrices, 2.0))
    assert x.dtype == w.dtype == np.float64
    slopes = np.einsum("bij,bj->bi", matrices, x) - linears
    tolerance = 1e-14 * np.maximum(1, x.sum(1, keepdims=True))
    assert (np.abs(np.minimum(x, slopes)) < tolerance).all()
    size = np.einsum("bij,bj->bi", np.abs(matrices), w)
    gains = np.einsum("bij,bj->bi", matrices, w)
    assert (np.abs(gains - w**-0.5) < 3e-15 * size).all()


def test_under_scan_and_pmap():
    matrices = np.float32(grams(4)[0][:8])
    ones = np.ones(4, np.float32)

    def solve(matrix):
        v = _convex.best_in_ball(matrix, ones, matrix[0], 0.5)
        return v, _convex.fair_point(matrix, 1.0)

    one_by_one = jax.pmap(lambda m: lax.scan(lambda c, m: (c, solve(m)), 0, m)[1])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        jax.tree.map(lambda x: x[0], one_by_one(matrices[None])),
        jax.jit(jax.vmap(solve))(matrices),
    )
