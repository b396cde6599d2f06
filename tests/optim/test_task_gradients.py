import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optim_problems import (
    TASKS,
    assert_trees_close,
    assert_trees_equal,
    quadratic,
    quadratics,
    start,
    task_gradients_of,
)

from mtl_jax import optim

MASKS = [(1, 1, 1), (1, 0, 1), (0, 1, 0), (0, 0, 0)]


def digit_losses():
    """Every task appends its number to the carry, and reports what it was given."""
    return [
        lambda w, carry, k=k: (carry * 1.0 + k * w.sum(), carry * 10 + k)
        for k in (1, 2, 3)
    ]


def test_it_knows_the_number_of_tasks():
    assert optim.task_gradients(digit_losses()).num_tasks == 3


def test_a_task_is_chosen_by_a_traced_index():
    targets, curvatures = quadratics(0)
    gradients = task_gradients_of(targets, curvatures)
    of_task = jax.jit(lambda index: gradients.of_task(index, start(), 5.0))
    for k in range(TASKS):
        (loss, carry), gradient = of_task(k)
        expected_loss, expected = jax.value_and_grad(quadratic)(
            start(), targets[k], curvatures[k]
        )
        assert carry == 5.0
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
        assert_trees_close(gradient, expected, rtol=1e-6)


def test_a_group_is_chosen_by_a_traced_mask():
    targets, curvatures = quadratics(0)
    gradients = task_gradients_of(targets, curvatures)
    of_group = jax.jit(lambda mask: gradients.of_group(mask, start(), None))
    for mask in MASKS:
        mask = np.array(mask, bool)
        losses = np.array(
            [quadratic(start(), t, c) for t, c in zip(targets, curvatures, strict=True)]
        )
        (values, carry), gradient = of_group(mask)
        assert carry is None
        np.testing.assert_allclose(values, np.where(mask, losses, 0), rtol=1e-6)

        def masked_sum(params, mask=mask):
            values = [
                quadratic(params, t, c)
                for t, c in zip(targets, curvatures, strict=True)
            ]
            return jnp.where(mask, jnp.stack(values), 0).sum()

        assert_trees_close(gradient, jax.grad(masked_sum)(start()), rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_group_visits_its_members_in_order_at_one_point(mask):
    of_group = optim.task_gradients(digit_losses()).of_group
    w = jnp.ones(2)
    (values, carry), gradient = of_group(jnp.array(mask, bool), w, jnp.float32(9))
    digits, expected = 9, []
    for is_member, k in zip(mask, (1, 2, 3), strict=True):
        expected.append(digits + 2 * k if is_member else 0)
        digits = digits * 10 + k if is_member else digits
    assert carry == digits
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(gradient, np.dot(mask, (1, 2, 3)))


def test_losses_of_others_are_not_evaluated():
    targets, curvatures = quadratics(1)
    targets[1] = np.nan
    gradients = task_gradients_of(targets, curvatures)
    result = gradients.of_group(jnp.array([True, False, True]), start(), None)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


def test_gradients_have_the_parameters_dtype_and_losses_are_float32():
    losses = [lambda w, carry: ((w**2).sum(), carry)] * 2
    gradients = optim.task_gradients(losses)
    w = jnp.ones(3, jnp.bfloat16)
    (values, _), gradient = gradients.of_group(jnp.array([True, False]), w, None)
    assert gradient.dtype == jnp.bfloat16
    assert values.dtype == jnp.float32
    assert_trees_equal(values, jnp.array([3.0, 0.0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.independent(optax.sgd(0.1), TASKS),
        lambda: optim.alternating(optax.sgd(0.1)),
        lambda: optim.random_grouping(optax.sgd(0.1), 2, jax.random.key(0)),
    ],
)
def test_a_bare_function_is_a_mistake_that_is_named(make):
    optimizer = make()
    of_task = task_gradients_of(*quadratics(0)).of_task
    with pytest.raises(TypeError, match="task_gradients"):
        optimizer.update(of_task, optimizer.init(start()), start())
    with pytest.raises(AssertionError, match="shape"):
        optimizer.update(
            task_gradients_of(*quadratics(0)),
            optimizer.init(start()),
            start(),
            active=np.ones(TASKS + 1, bool),
        )
