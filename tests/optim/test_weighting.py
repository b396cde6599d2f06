import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optim_problems import (
    as_matrix,
    as_vector,
    assert_trees_close,
    assert_trees_equal,
    random_gradients,
    random_params,
    row,
)

from mtl_jax import optim

SEEDS = st.integers(0, 2**31 - 1)
WEIGHTS = [0.5, -2.0, 3.25]


def transformed(tx, gradients, **extra):
    return tx.update(gradients, tx.init(random_params()), random_params(), **extra)[0]


@given(SEEDS, st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3))
def test_equation_1(seed, weights):
    gradients = random_gradients(seed)
    actual = transformed(optim.weighted_sum(weights), gradients)
    expected = np.array(weights) @ as_matrix(gradients)
    np.testing.assert_allclose(as_vector(actual), expected, atol=2e-5)


@given(SEEDS)
def test_without_weights_it_is_the_sum(seed):
    gradients = random_gradients(seed)
    expected = jax.tree.map(lambda leaf: leaf.sum(0), gradients)
    assert_trees_equal(transformed(optim.weighted_sum(), gradients), expected)
    ones = transformed(optim.weighted_sum([1, 1, 1]), gradients)
    assert_trees_close(ones, expected, rtol=1e-6, atol=1e-6)


def test_scaling_keeps_the_task_axis():
    gradients = random_gradients(0)
    actual = transformed(optim.scale_by_task(WEIGHTS), gradients)
    for k, weight in enumerate(WEIGHTS):
        expected = jax.tree.map(lambda leaf, w=weight: w * leaf, row(gradients, k))
        assert_trees_equal(row(actual, k), expected)


def test_scaling_and_summing_is_the_weighted_sum():
    gradients = random_gradients(1)
    scaled = transformed(optim.scale_by_task(WEIGHTS), gradients)
    assert_trees_close(
        transformed(optim.weighted_sum(), scaled),
        transformed(optim.weighted_sum(WEIGHTS), gradients),
        rtol=1e-5,
        atol=1e-6,
    )


def test_bfloat16_gradients_are_added_in_float32():
    # 256 + 1 has no bfloat16; four of the ones must still count.
    gradients = {"w": jnp.array([[256.0], [1], [1], [1], [1]], jnp.bfloat16)}
    params = {"w": jnp.zeros(1, jnp.bfloat16)}
    for tx in (optim.weighted_sum(), optim.weighted_sum([1.0] * 5)):
        updates, _ = tx.update(gradients, tx.init(params), params)
        assert updates["w"].dtype == jnp.bfloat16
        assert updates["w"][0] == 260


def test_the_number_of_weights_must_be_that_of_the_tasks():
    for tx in (optim.weighted_sum([1.0, 2.0]), optim.scale_by_task([1.0, 2.0])):
        with pytest.raises(ValueError, match="one number per task"):
            transformed(tx, random_gradients(0))


@pytest.mark.parametrize(
    "make",
    [
        optim.weighted_sum,
        lambda: optim.scale_by_task(WEIGHTS),
        lambda: optim.pcgrad(jax.random.key(0)),
        lambda: optim.from_gram(lambda gram: jnp.ones(3)),
        lambda: optim.gradnorm(3),
        lambda: optim.per_task(optim.weighted_sum(), 3),
    ],
)
def test_a_gradient_without_a_task_axis_is_a_mistake_that_is_named(make):
    tx, params = make(), random_params()
    with pytest.raises(ValueError, match="leading task axis"):
        tx.update(params, tx.init(params), params, task_losses=jnp.ones(3))
    # Also where the first axis looks like one.
    params = {"w": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="leading task axis"):
        tx.update(params, tx.init(params), params, task_losses=jnp.ones(3))
