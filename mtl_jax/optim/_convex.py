"""The small convex problems of methods that look at the Gram matrix.

They have one unknown for each task. The solvers are primal-dual interior point methods:
a loop of some ten steps with one Cholesky factorisation each. They run where
the matrix is, in its dtype, under `jit`, `vmap`, `scan` and `pmap`.
"""

import jax
import jax.numpy as jnp
from jax import lax

_MOST_STEPS = 30


def unit_diagonal(
    gram: jax.Array, active: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Splits a Gram matrix into the cosines of the gradients and their norms.

    Args:
      gram: [N, N].
      active: bool [N].

    Returns:
      The cosines [N, N]; the norms [N]; and bool [N], which tasks are present, that is
      active and with a gradient that is not zero. The others are orthogonal to all
      here, and of norm 1.
    """
    present = active & (jnp.diagonal(gram) > 0)
    norms = jnp.sqrt(jnp.where(present, jnp.diagonal(gram), 1))
    cosines = gram / norms / norms[:, None]
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    return jnp.where(jnp.outer(present, present), cosines, identity), norms, present


def nonnegative_qp(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    """Minimises 1/2 x'Hx - b'x over x >= 0, by Mehrotra's predictor and corrector.

    At the end, the products of x and its multipliers are of the size of the square of
    the dtype's epsilon, so that what limits the result is the rounding of Hx - b. H may
    be singular: a few epsilons are added to its diagonal.

    Args:
      matrix: H, [N, N], positive semidefinite but for roundings, of diagonal 1 to 2.
      linear: b, [N], neither tiny nor huge.

    Returns:
      x, [N]. The elements that the constraint holds at 0 are tiny and positive.

    References:
      Nocedal and Wright, Numerical Optimization, 2006, algorithm 16.4.
    """
    n, dtype = len(matrix), matrix.dtype
    eps = jnp.finfo(dtype).eps
    matrix = matrix + 4 * eps * jnp.eye(n, dtype=dtype)

    def residual(x, z):
        return product(matrix, x) - linear - z

    def step(carry):
        x, z, r, gap, count = carry
        solve = _solver(matrix + jnp.diag(n * eps + z / x))

        def direction(products, share):
            dx = solve(-r - products / x)
            dz = -(products + z * dx) / x
            length = jnp.minimum(_longest(x, dx), _longest(z, dz))
            return dx, dz, jnp.minimum(1, share * length)

        dx, dz, length = direction(x * z, 1)
        after = product(x + length * dx, z + length * dz) / n
        centre = gap * (after / gap) ** 3
        dx, dz, length = direction(x * z + dx * dz - centre, 0.99)
        x, z = x + length * dx, z + length * dz
        return x, z, residual(x, z), product(x, z) / n, count + 1

    def is_open(carry):
        x, _, r, gap, count = carry
        is_infeasible = jnp.abs(r) > 4 * eps * (jnp.abs(linear) + x.sum())
        return (count < _MOST_STEPS) & (
            (gap > eps**2) | (is_infeasible.any() & (gap > eps**4))
        )

    one = jnp.ones(n, dtype)
    start = one, one, residual(one, one), jnp.ones((), dtype), 0
    return lax.while_loop(is_open, step, start)[0]


def shortest(matrix: jax.Array, ones: jax.Array) -> jax.Array:
    """Minimises v'Gv over v >= 0 with a'v = 1.

    Args:
      matrix: G, [N, N], as in `nonnegative_qp`, of diagonal 1.
      ones: a, [N], of maximum 1. An element of v is 0 where a is 0.

    Returns:
      v, [N].
    """
    # A multiple of v minimises v'Gv + (1 - a'v)^2.
    linear = jnp.where(ones > 0, ones, -1)
    v = nonnegative_qp(matrix + jnp.outer(ones, ones), linear)
    return v / product(ones, v)


def best_in_ball(
    matrix: jax.Array, ones: jax.Array, linear: jax.Array, radius: float | jax.Array
) -> jax.Array:
    """Maximises the t with Gv + b >= t a over v with v'Gv <= r^2.

    The dual problem is to minimise f(w) = b'w + r sqrt(w'Gw) over w >= 0 with a'w = 1.
    The v that minimises v'Gv / 2 + b'v - t a'v over v >= 0 has a square v'Gv that grows
    with t, and is the solution where it is r^2. Newton's method for sqrt(v'Gv) = r
    takes t to f(v / a'v), and from above it comes down to the solution.

    Args:
      matrix: G, [N, N], as in `nonnegative_qp`, of diagonal 1.
      ones: a, [N], of maximum 1.
      linear: b, [N].
      radius: r, not negative.

    Returns:
      v, [N], at least 0.
    """
    eps = jnp.finfo(matrix.dtype).eps
    radius = jnp.asarray(radius, matrix.dtype)

    def length(v):
        square = product(v, product(matrix, v)) + 4 * eps * product(v, v)
        return jnp.sqrt(jnp.maximum(square, eps**4))

    def dual(v):
        return (product(linear, v) + radius * length(v)) / product(ones, v)

    def step(carry):
        t, _, _, count = carry
        # An element far below 0 does no more than to keep v at 0.
        v = nonnegative_qp(matrix, jnp.maximum(t * ones - linear, -100))
        return dual(v), t, v, count + 1

    def is_open(carry):
        t, before, _, count = carry
        return (before - t > 4 * eps * (1 + jnp.abs(t))) & (count < _MOST_STEPS)

    v = shortest(matrix, ones)
    start = dual(v), jnp.full((), jnp.inf, matrix.dtype), v, 0
    v = lax.while_loop(is_open, step, start)[2]
    return radius * v / length(v)


def fair_point(gram: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """Solves (Gw)_k = w_k^(-1/alpha) for w > 0.

    The solution minimises the convex function 1/2 w'Gw - sum_k u(w_k) with u'(w) =
    w^(-1/alpha). It exists unless a convex combination of the gradients is zero. A few
    epsilons are added to the diagonal, relative to it, so that it always does.

    Args:
      gram: G, [N, N], positive semidefinite but for roundings, of positive diagonal.
      alpha: positive.

    Returns:
      w, [N].
    """
    n, eps = len(gram), jnp.finfo(gram.dtype).eps
    one, alpha = jnp.ones(n, gram.dtype), jnp.asarray(alpha, gram.dtype)
    gram = gram + 4 * eps * jnp.diag(jnp.diagonal(gram))

    # Newton's method for G w = z and log w + alpha log z = 0, in relative steps. An
    # interior point method's steps to mu = 1 are these if alpha is 1.
    def step(carry):
        w, z, _, count = carry
        slack = product(gram, w) - z
        error = jnp.log(w) + alpha * jnp.log(z)
        noise = jnp.sqrt(eps) * z + 8 * eps * product(jnp.abs(gram), w)
        # One more step follows when this is satisfied, and squares the errors.
        is_open = (jnp.abs(slack) > noise) | (jnp.abs(error) * z > noise)
        system = gram * w * w[:, None]
        ridge = n * eps * jnp.diagonal(system) + w * z / alpha
        dw = _solver(system + jnp.diag(ridge))(-w * (slack + z * error / alpha))
        dz = -(error + dw) / alpha
        length = jnp.minimum(_longest(one, dw), _longest(one, dz))
        length = jnp.minimum(1, 0.9 * length)
        return w * (1 + length * dw), z * (1 + length * dz), is_open.any(), count + 1

    # The solution if all gradients are equal.
    w = (n * jnp.diagonal(gram)) ** (-alpha / (1 + alpha))
    start = w, w ** (-1 / alpha), jnp.array(True), 0
    return lax.while_loop(lambda c: c[2] & (c[3] < _MOST_STEPS), step, start)[0]


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """The matrix product. No accelerator rounds its operands to fewer bits."""
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def _longest(x, dx):
    """The longest step that keeps x from being negative."""
    return jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, 1), jnp.inf).min()


def _solver(matrix):
    """Solves systems of a positive definite matrix, at any scales of its rows."""
    scale = lax.rsqrt(jnp.diagonal(matrix))
    factor = jnp.linalg.cholesky(
        matrix * scale * scale[:, None], symmetrize_input=False
    )

    def solve(side):
        return scale * jax.scipy.linalg.cho_solve((factor, True), scale * side)

    return solve
