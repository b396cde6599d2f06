import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optim_problems import (
    as_matrix,
    as_vector,
    random_gradients,
    without,
)

from mtl_jax import optim
from mtl_jax.optim import _pcgrad

KEY = jax.random.key(7)
SEEDS = st.integers(0, 2**31 - 1)


def by_hand(gradients, orders):
    """Yu et al. 2020, algorithm 1, on explicit vectors [N, D]."""
    projected, conflicts = gradients.copy(), 0
    for i, order in enumerate(orders):
        for j in order:
            if j == i:
                continue
            inner = projected[i] @ gradients[j]
            if inner < 0:
                square = gradients[j] @ gradients[j]
                projected[i] = projected[i] - inner / square * gradients[j]
                conflicts += 1
    return projected.sum(0), conflicts


def at_scales(gradients, exponents):
    """Task k's gradient times 10^exponents[k]."""
    scales = 10.0 ** np.array(exponents)
    return jax.tree.map(
        lambda leaf: np.float32(leaf * scales.reshape(-1, *(1,) * (leaf.ndim - 1))),
        gradients,
    )


# To the ends of the range that `from_gram` documents.
EXPONENTS = st.sampled_from([-15, -10, 0, 10, 15])


@functools.cache
def compiled():
    return jax.jit(optim.pcgrad(KEY).update)


def step(gradients, count=0):
    state = optim.PCGradState(jnp.int32(count), jnp.int32(0))
    return compiled()(gradients, state)


project = jax.jit(_pcgrad._project)
random_orders = jax.jit(_pcgrad.random_orders, static_argnums=2)


def orders_at(count, tasks):
    return np.asarray(random_orders(KEY, jnp.int32(count), tasks))


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_algorithm_1_on_explicit_vectors(tasks):
    @given(SEEDS, st.integers(0, 100))
    def check(seed, count):
        gradients = random_gradients(seed, tasks)
        # Not all of one length, and not orthogonal on average.
        gradients = jax.tree.map(
            lambda leaf: (
                (leaf - np.float32(0.3) * leaf[:1]) * np.float32(1 + 3 * (seed % 5))
            ),
            gradients,
        )
        updates, state = step(gradients, count)
        expected, conflicts = by_hand(as_matrix(gradients), orders_at(count, tasks))
        np.testing.assert_allclose(
            as_vector(updates), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
        )
        assert state.num_conflicts == conflicts
        assert state.count == count + 1

    check()


@given(SEEDS, st.lists(EXPONENTS, min_size=2, max_size=2))
def test_of_two_tasks_the_result_conflicts_with_neither(seed, exponents):
    matrix = as_matrix(gradients := at_scales(random_gradients(seed, 2), exponents))
    norms = np.linalg.norm(matrix, axis=1)
    # Along each of the two directions.
    along = matrix / norms[:, None] @ as_vector(step(gradients)[0])
    assert (along > -1e-5 * norms.max()).all()


@given(SEEDS)
def test_of_two_tasks_the_order_does_not_matter(seed):
    gradients = random_gradients(seed, 2)
    swapped = jax.tree.map(lambda leaf: leaf[::-1], gradients)
    np.testing.assert_allclose(
        as_vector(step(gradients)[0]), as_vector(step(swapped)[0]), atol=1e-5
    )


@given(SEEDS, st.permutations(range(4)))
def test_tasks_under_other_numbers_are_the_same_tasks(seed, permutation):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(4, 6)).astype(np.float32)
    orders = np.stack([rng.permutation(4) for _ in range(4)])
    permutation = np.array(permutation)
    coefficients, conflicts = project(jnp.array(vectors @ vectors.T), jnp.array(orders))
    # New task a is old task permutation[a].
    renamed, number = vectors[permutation], np.argsort(permutation)
    again, conflicts_again = project(
        jnp.array(renamed @ renamed.T), jnp.array(number[orders[permutation]])
    )
    np.testing.assert_allclose(
        coefficients.sum(0) @ vectors, again.sum(0) @ renamed, atol=1e-4
    )
    assert conflicts == conflicts_again


@given(SEEDS, st.integers(-50, 50))
def test_scaling_all_gradients_scales_the_result(seed, exponent):
    gradients = random_gradients(seed, 4)
    scaled = jax.tree.map(lambda leaf: leaf * np.float32(2.0**exponent), gradients)
    (expected, state), (actual, again) = step(gradients), step(scaled)
    np.testing.assert_array_equal(
        as_vector(actual), as_vector(expected) * 2.0**exponent
    )
    assert state.num_conflicts == again.num_conflicts


@given(SEEDS)
def test_without_conflicts_it_is_the_sum(seed):
    gradients = jax.tree.map(np.abs, random_gradients(seed, 4))
    updates, state = step(gradients)
    np.testing.assert_allclose(
        as_vector(updates), as_matrix(gradients).sum(0), rtol=1e-6
    )
    assert state.num_conflicts == 0


@given(SEEDS, st.sets(st.integers(0, 3), min_size=1))
def test_gradients_of_zero_take_no_part(seed, absent):
    active = np.array([k not in absent for k in range(4)])
    gradients = without(random_gradients(seed, 4), active)
    updates, state = step(gradients)
    numbers = np.flatnonzero(active)
    orders = [
        [list(numbers).index(j) for j in order if active[j]]
        for order in orders_at(0, 4)[active]
    ]
    expected, conflicts = by_hand(as_matrix(gradients)[active], orders)
    np.testing.assert_allclose(as_vector(updates), expected, atol=1e-4)
    assert state.num_conflicts == conflicts


def test_opposite_gradients_cancel():
    gradient = random_gradients(0, 1)
    gradients = jax.tree.map(lambda leaf: np.concatenate([leaf, -leaf]), gradient)
    updates, state = step(gradients)
    np.testing.assert_allclose(as_vector(updates), 0, atol=1e-6)
    assert state.num_conflicts == 2


def test_orders_are_drawn_anew_for_every_task_and_step():
    orders = np.stack([orders_at(count, 3) for count in range(200)])
    np.testing.assert_array_equal(
        np.sort(orders), np.broadcast_to([0, 1, 2], (200, 3, 3))
    )
    for task in range(3):
        _, counts = np.unique(orders[:, task], axis=0, return_counts=True)
        # All six orders, each about 200 / 6 times.
        assert len(counts) == 6
        assert counts.min() > 15
    assert (orders[:, 0] != orders[:, 1]).any(1).mean() > 0.5
    other = random_orders(jax.random.key(8), jnp.int32(0), 20)
    assert not np.array_equal(orders_at(0, 20), other)


def test_random_orders_make_a_difference_for_three_tasks():
    """Guards the tests above: a fixed order would be noticed."""
    gradients = random_gradients(3, 4)
    results = {
        as_vector(step(gradients, count)[0]).round(4).tobytes() for count in range(9)
    }
    assert len(results) > 1


def test_a_legacy_key_will_do():
    np.testing.assert_array_equal(
        random_orders(jax.random.PRNGKey(7), 5, 4), orders_at(5, 4)
    )


def test_inner_products_of_bfloat16_are_accumulated_in_float32():
    # 4096 products of 1: a bfloat16 sum would stick at 256.
    ones = np.ones((1, 4096), jnp.bfloat16)
    gradients = {"w": np.concatenate([ones, -ones / 2])}
    updates, state = step(gradients)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(updates["w"], np.float32), 0, atol=1e-2)
    assert state.num_conflicts == 2


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_algorithm_1_at_every_scale_of_every_task(tasks):
    @given(SEEDS, st.lists(EXPONENTS, min_size=tasks, max_size=tasks))
    def check(seed, exponents):
        gradients = at_scales(random_gradients(seed, tasks), exponents)
        updates, state = step(gradients)
        expected, conflicts = by_hand(as_matrix(gradients), orders_at(0, tasks))
        np.testing.assert_allclose(
            as_vector(updates), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )
        assert state.num_conflicts == conflicts

    check()


@pytest.mark.parametrize(
    ("gradients", "expected", "conflicts"),
    [
        # Small beside huge: nothing of the small one is lost, where the other is zero.
        ([[1e15, 0], [0, 1e-15]], [1e15, 1e-15], 0),
        # [5e14, 5e14] and [0, 1e-15].
        ([[1e15, 0], [-1e-15, 1e-15]], [5e14, 5e14], 2),
        # [5e-16, 5e-16] and [0, 1e-15].
        ([[1e-15, 0], [-1e-15, 1e-15]], [5e-16, 1.5e-15], 2),
        ([[1e15, 0], [-1e15, 1e15]], [5e14, 1.5e15], 2),
        ([[1e15, 0], [0, 0]], [1e15, 0], 0),
        ([[-1e-15, 0], [0, 0]], [-1e-15, 0], 0),
        ([[0, 0], [0, 0]], [0, 0], 0),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_huge_and_tiny_gradients_by_hand(dtype, gradients, expected, conflicts):
    updates, state = step({"w": jnp.array(gradients, dtype)})
    assert updates["w"].dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(
        np.asarray(updates["w"], np.float64), expected, rtol=tolerance
    )
    assert state.num_conflicts == conflicts


def test_huge_and_tiny_leaves_of_one_gradient():
    # Of task 1, the bias counts beside the kernel; of task 2, all is small.
    gradients = {
        "kernel": np.float32([[1e15, 0], [-1e-15, 0]]),
        "bias": np.float32([[1e15], [0]]),
    }
    updates, state = step(gradients)
    # [1e15, 0, 1e15] is left with its bias; [-1e-15, 0, 0] loses half of itself.
    np.testing.assert_allclose(updates["bias"], [1e15 + 5e-16], rtol=1e-6)
    np.testing.assert_allclose(updates["kernel"], [-5e-16, 0], atol=1e9)
    assert state.num_conflicts == 2


def test_half_precision_beside_a_huge_leaf():
    # 2^-20, the square, has no full float16; it is computed in float32.
    halves = np.float16([[1, 2**-10], [-1, 2**-10]])
    huge = np.zeros((2, 1), np.float32)
    huge[0] = 1e15
    updates, _ = step({"half": halves, "huge": huge})
    assert updates["half"].dtype == np.float16
    vectors = np.concatenate([halves.astype(np.float64), huge], axis=1)
    expected, _ = by_hand(vectors, orders_at(0, 2))
    np.testing.assert_allclose(updates["huge"], expected[2:], rtol=1e-6)
    np.testing.assert_allclose(updates["half"][1], expected[1], rtol=2**-9)


@given(SEEDS, EXPONENTS, st.integers(1, 4))
def test_tasks_of_parallel_gradients_just_add(seed, exponent, tasks):
    """One task, identical tasks, and tasks that differ in scale only."""
    factors = np.random.default_rng(seed).choice([1.0, 1.0, 0.25, 3.0], tasks)
    gradient = at_scales(random_gradients(seed, 1), [exponent])
    gradients = jax.tree.map(
        lambda leaf: np.float32(
            leaf * factors.reshape(-1, *(1,) * (leaf.ndim - 1)).astype(np.float32)
        ),
        gradient,
    )
    updates, state = step(gradients)
    np.testing.assert_allclose(
        as_vector(updates), factors.sum() * as_matrix(gradient)[0], rtol=1e-6
    )
    assert state.num_conflicts == 0


@given(SEEDS, st.integers(0, 3), st.integers(-40, 40))
def test_the_result_is_linear_in_the_length_of_one_gradient(seed, task, exponent):
    """Projecting off a gradient asks for its direction only."""

    def result(factor):
        factors = np.where(np.arange(4) == task, np.float32(factor), np.float32(1))
        gradients = jax.tree.map(
            lambda leaf: leaf * factors.reshape(-1, *(1,) * (leaf.ndim - 1)),
            random_gradients(seed, 4),
        )
        updates, state = step(gradients)
        return as_vector(updates), state.num_conflicts

    factor = 2.0**exponent
    (one, conflicts), (two, again), (many, often) = map(result, (1, 2, factor))
    expected = one + (factor - 1) * (two - one)
    np.testing.assert_allclose(many, expected, atol=2e-5 * np.abs(expected).max())
    assert conflicts == again == often


def test_a_gradient_that_is_not_finite_is_not_hidden():
    for value in (np.nan, np.inf):
        gradients = random_gradients(0, 2)
        gradients["encoder"]["bias"][0, 0] = value
        assert not np.isfinite(as_vector(step(gradients)[0])).all()


def equations_of(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations_of(inner)


def test_the_gradients_are_read_twice_and_no_projection_is_stored():
    tasks, size = 4, 10_000
    tx = optim.pcgrad(KEY)
    gradients = {"w": jnp.zeros((tasks, size))}
    jaxpr = jax.make_jaxpr(tx.update)(gradients, tx.init(None)).jaxpr
    big = [
        (equation.primitive.name, max(out.aval.size for out in equation.outvars))
        for equation in equations_of(jaxpr)
        if any(getattr(v.aval, "size", 0) >= size for v in equation.invars)
    ]
    assert big[0] == ("dot_general", tasks * tasks)
    # XLA makes one pass of these.
    assert all(output == size for _, output in big[1:])
