import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from optim_problems import (
    TASKS,
    as_matrix,
    as_vector,
    random_gradients,
    random_params,
)
from scipy.optimize import nnls

from mtl_jax import optim
from mtl_jax.optim import _task_axis

SEEDS = st.integers(0, 2**31 - 1)
FACTORS = np.array([1.0, 2.0, -3.0])


def cubic(gram):
    """Weights that depend on every element of the matrix, and on which is which."""
    return (gram * FACTORS).sum(1) + jnp.diagonal(gram)


def recorded(gram, state, **extra_args):
    """The same, with all that they were made of as the state."""
    del state
    return cubic(gram), (gram, extra_args)


def recorder(shared=None):
    return optim.from_gram(recorded, lambda params: (), shared)


@functools.cache
def compiled():
    return jax.jit(optim.from_gram(cubic).update), jax.jit(recorder().update)


def gram_of(gradients):
    _, (gram, _) = compiled()[1](gradients, ())
    return np.asarray(gram, np.float64)


@given(SEEDS)
def test_the_update_is_the_weighted_sum(seed):
    gradients = random_gradients(seed)
    matrix = as_matrix(gradients)
    weights = cubic(matrix @ matrix.T)
    update, record = compiled()
    updates, state = update(gradients, ())
    np.testing.assert_allclose(as_vector(updates), weights @ matrix, rtol=1e-3)
    assert state == ()
    again, (gram, extra_args) = record(gradients, ())
    np.testing.assert_array_equal(as_vector(again), as_vector(updates))
    np.testing.assert_allclose(gram, matrix @ matrix.T, rtol=1e-4, atol=1e-5)
    assert gram.dtype == jnp.float32
    np.testing.assert_array_equal(extra_args.pop("active"), True)
    assert not extra_args


@pytest.mark.parametrize("exponents", [(-15, 0, 15), (15, 15, 0), (-15, -15, -15)])
def test_norms_from_1e_15_to_1e15(exponents):
    # As many elements as a network has, each much smaller than the norm.
    matrix = np.random.default_rng(0).choice([-1.0, 1.0], (TASKS, 10**7)) + 0.1
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    scales = 10.0 ** np.array(exponents)
    gram = gram_of(np.float32(matrix * scales[:, None]))
    np.testing.assert_allclose(
        gram / scales / scales[:, None], matrix @ matrix.T, atol=1e-4
    )


def test_a_norm_below_the_range_counts_as_zero_and_one_above_it_is_not_hidden():
    tiny, one, huge = np.diag(gram_of(np.float32([[1e-30], [1], [1e25]])))
    assert (tiny, one, huge) == (0, 1, np.inf)


@pytest.mark.parametrize("active", [(1, 0, 1), (0, 1, 0), (0, 0, 0)], ids=str)
def test_an_inactive_task_takes_no_part_whatever_its_gradient_is(active):
    active = np.array(active, bool)
    gradients = random_gradients(1)
    matrix = np.where(active[:, None], as_matrix(gradients), 0)
    tx = optim.from_gram(
        lambda gram, state, **extra_args: (jnp.ones(TASKS), (gram, extra_args)),
        lambda params: (),
    )
    updates, (gram, extra_args) = tx.update(
        gradients, (), active=active, task_losses=jnp.ones(TASKS)
    )
    np.testing.assert_allclose(as_vector(updates), matrix.sum(0), atol=1e-6)
    np.testing.assert_allclose(gram, matrix @ matrix.T, rtol=1e-4, atol=1e-5)
    assert set(extra_args) == {"active", "task_losses"}
    np.testing.assert_array_equal(extra_args["active"], active)


def test_the_matrix_is_of_the_shared_parameters_and_the_sum_of_all():
    gradients = random_gradients(2)
    tx = recorder(lambda path: path.startswith("encoder/"))
    updates, (gram, _) = tx.update(gradients, tx.init(random_params()))
    shared = as_matrix(gradients["encoder"])
    np.testing.assert_allclose(gram, shared @ shared.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        as_vector(updates), cubic(shared @ shared.T) @ as_matrix(gradients), rtol=1e-4
    )


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="none of the 3 parameters"):
        recorder(lambda path: path == "decoder").init(random_params())
    for weights in (lambda gram: gram, lambda gram: 1.0):
        with pytest.raises(ValueError, match="the weights of 3 tasks have shape"):
            optim.from_gram(weights).update(random_gradients(0), ())


# Published methods, to see that the function is all that one has to write.


def upgrad(gram):
    """Quinton and Rey 2024: each gradient projected onto the dual cone of all."""

    def sweep(_, v):
        for j in range(len(gram)):
            nearest = v[:, j] - v @ gram[:, j] / gram[j, j]
            v = v.at[:, j].set(jnp.maximum(nearest, j == jnp.arange(len(gram))))
        return v

    return jax.lax.fori_loop(0, 100, sweep, jnp.eye(len(gram))).sum(0)


def nash(gram, w, **extra_args):
    """Navon et al. 2022: the w for which (G w)_k = 1 / w_k, from the last one on."""

    def sweep(_, w):
        for k in range(len(gram)):
            rest = gram[k] @ w - gram[k, k] * w[k]
            root = jnp.sqrt(rest**2 + 4 * gram[k, k])
            w = w.at[k].set((root - rest) / (2 * gram[k, k]))
        return w

    w = jax.lax.fori_loop(0, 20, sweep, w)
    return w, w


def test_upgrad():
    update = jax.jit(optim.from_gram(upgrad).update)

    @given(SEEDS)
    def check(seed):
        gradients = random_gradients(seed)
        matrix = as_matrix(gradients)
        # The dual cone's nearest point to g is g plus what a least-squares fit adds.
        expected = sum(g + matrix.T @ nnls(matrix.T, -g)[0] for g in matrix)
        actual = as_vector(update(gradients, optax.EmptyState())[0])
        np.testing.assert_allclose(actual, expected, atol=1e-3)
        assert (matrix @ actual > -1e-3).all()

    check()


def test_nash_mtl():
    tx = optim.from_gram(nash, lambda params: jnp.ones(TASKS))
    update = jax.jit(tx.update)
    state = tx.init(random_params())
    for seed in range(10):
        gradients = random_gradients(seed)
        matrix = as_matrix(gradients)
        updates, state = update(gradients, state)
        np.testing.assert_allclose(state * (matrix @ matrix.T @ state), 1, atol=1e-3)
        np.testing.assert_allclose(
            as_vector(updates), np.float64(state) @ matrix, atol=1e-5
        )


@pytest.mark.parametrize("tasks", [1, 2, 4, 9, 16, 17])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_inner_products_of_leaves_larger_than_a_cache(tasks, dtype):
    # Many chunks of blocks, less than a chunk, and less than a block; all with a rest.
    rng = np.random.default_rng(tasks)
    first, second = (
        {
            "large": jnp.asarray(rng.standard_normal((tasks, 300_001)), dtype),
            "medium": jnp.asarray(
                rng.standard_normal((tasks, 150_001 // tasks)), dtype
            ),
            "small": jnp.asarray(rng.standard_normal((tasks, 3, 5)), dtype),
        }
        for _ in range(2)
    )

    def expected(first, second):
        rows = (
            np.concatenate(
                [np.asarray(tree[key], np.float64).reshape(tasks, -1) for key in tree],
                axis=1,
            )
            for tree in (first, second)
        )
        return np.einsum("jp,kp->jk", *rows)

    # The squares of the norms are 3e5; sums in float32 may lose 1e-5 of them.
    gram = np.asarray(jax.jit(_task_axis.gram)(first))
    np.testing.assert_allclose(gram, expected(first, first), atol=3)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_allclose(
        jax.jit(_task_axis.inner_products)(first, second),
        expected(first, second),
        atol=3,
    )


@pytest.mark.parametrize("place", [0, 10_000, -1])
def test_what_is_not_finite_stays_with_its_task(place):
    # Part of a matrix that a CPU takes block by block, and its rest.
    gradients = jnp.ones((5, 20_001)).at[3, place].set(jnp.nan)
    gram = np.asarray(jax.jit(_task_axis.gram)(gradients))
    np.testing.assert_array_equal(np.isnan(gram[:, 3]), True)
    np.testing.assert_array_equal(np.isnan(gram[3]), True)
    others = np.delete(np.delete(gram, 3, 0), 3, 1)
    np.testing.assert_allclose(others, 20_001, rtol=1e-6)


def test_inner_products_of_what_varies_over_a_mesh():
    mesh = jax.make_mesh((1,), ("devices",), (AxisType.Auto,))
    gradients = jnp.ones((5, 20_000))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(None, "devices"), P()), out_specs=P()
    )
    def products(sharded, replicated):
        found = _task_axis.gram(sharded), _task_axis.inner_products(sharded, replicated)
        return jax.lax.psum(found, "devices")

    gram, inner_products = jax.jit(products)(gradients, 2 * gradients)
    np.testing.assert_array_equal(gram, 20_000)
    np.testing.assert_array_equal(inner_products, 40_000)
