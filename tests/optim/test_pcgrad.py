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


@functools.cache
def compiled():
    return jax.jit(optim.pcgrad(KEY).update)


def step(gradients, count=0):
    state = optim.PCGradState(jnp.int32(count), jnp.int32(0))
    return compiled()(gradients, state)


project = jax.jit(_pcgrad._project)
random_orders = jax.jit(_pcgrad._random_orders, static_argnums=2)


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


@given(SEEDS)
def test_of_two_tasks_the_result_conflicts_with_neither(seed):
    gradients = random_gradients(seed, 2)
    matrix = as_matrix(gradients)
    result = as_vector(step(gradients)[0])
    assert (matrix @ result > -1e-4 * np.linalg.norm(matrix, axis=1).max() ** 2).all()


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


@given(SEEDS, st.integers(-20, 20))
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
    jaxpr = jax.make_jaxpr(tx.update)(gradients, tx.init(None))
    big = [
        (equation.primitive.name, max(out.aval.size for out in equation.outvars))
        for equation in equations_of(jaxpr.jaxpr)
        if any(getattr(v.aval, "size", 0) >= size for v in equation.invars)
    ]
    # The products of the second pass are fused into their sum by XLA.
    assert big == [
        ("dot_general", tasks * tasks),
        ("mul", tasks * size),
        ("reduce_sum", size),
    ]
