import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optim_problems import (
    STEPS,
    TASKS,
    assert_trees_close,
    random_gradients,
    random_params,
    row,
    stacked,
    without,
)

from mtl_jax import optim

TRANSFORMS = {
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "sgd momentum": lambda: optax.sgd(0.02, momentum=0.9),
    "lion": lambda: optax.lion(0.03, weight_decay=0.01),
    "clipped on a schedule": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(optax.linear_schedule(0.2, 0, 9))
    ),
    "injected, masked": lambda: optax.inject_hyperparams(
        lambda rate: optax.masked(
            optax.adam(rate), lambda tree: {k: k != "head" for k in tree}
        )
    )(rate=optax.linear_schedule(0.2, 0, 9)),
}


@functools.cache
def compiled(name):
    tx = optim.per_task(TRANSFORMS[name](), TASKS)
    return tx.init, jax.jit(tx.update)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_is_n_optimizers_whose_updates_add_up(name):
    tx = TRANSFORMS[name]()
    update_one = jax.jit(tx.update)
    init, update = compiled(name)
    params = random_params()
    states, state = [tx.init(params) for _ in range(TASKS)], init(params)
    for i in range(STEPS):
        gradients = random_gradients(i)
        total = jax.tree.map(np.zeros_like, params)
        for k in range(TASKS):
            own, states[k] = update_one(row(gradients, k), states[k], params)
            total = jax.tree.map(np.add, total, own)
        updates, state = update(gradients, state, params)
        assert_trees_close(updates, total, rtol=1e-4, atol=1e-5)
        assert_trees_close(state, stacked(states), rtol=1e-4, atol=1e-5)
        params = jax.tree.map(np.add, params, updates)


@pytest.mark.parametrize("active", [(1, 0, 1), (0, 0, 1), (0, 0, 0)], ids=str)
def test_inactive_tasks_move_nothing_and_keep_their_states(active):
    active = np.array(active, bool)
    init, update = compiled("adamw")
    params = random_params()
    _, state = update(random_gradients(0), init(params), params)
    updates, after = update(
        without(random_gradients(1), active), state, params, active=active
    )
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[~active], old[~active])
        assert all(not np.array_equal(new[k], old[k]) for k in np.flatnonzero(active))
    tx = TRANSFORMS["adamw"]()
    expected = jax.tree.map(np.zeros_like, params)
    for k in np.flatnonzero(active):
        own, _ = tx.update(row(random_gradients(1), k), row(state, k), params)
        expected = jax.tree.map(np.add, expected, own)
    assert_trees_close(updates, expected, rtol=1e-5, atol=1e-6)


def test_all_tasks_active_is_no_mask_at_all():
    init, update = compiled("adam")
    params, gradients = random_params(), random_gradients(0)
    assert_trees_close(
        update(gradients, init(params), params, active=np.ones(TASKS, bool)),
        update(gradients, init(params), params),
        rtol=1e-6,
        atol=1e-7,
    )


def test_plain_sgd_has_no_state_and_is_the_sum():
    tx, total = (
        optim.per_task(optax.sgd(1.0), TASKS),
        optim.weighted_sum([-1.0] * TASKS),
    )
    gradients = random_gradients(2)
    updates, state = tx.update(gradients, tx.init(random_params()))
    assert not jax.tree.leaves(state)
    expected, _ = total.update(gradients, optax.EmptyState())
    assert_trees_close(updates, expected, rtol=1e-5, atol=1e-6)


def test_extra_arguments_reach_the_transformation():
    def update(updates, state, params=None, *, factor, **extra_args):
        assert "active" not in extra_args
        return jax.tree.map(lambda leaf: factor * leaf, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = optim.per_task(inner, TASKS)
    updates, _ = tx.update(
        random_gradients(0),
        optax.EmptyState(),
        factor=3.0,
        active=jnp.ones(TASKS, bool),
    )
    expected, _ = optim.weighted_sum([3.0] * TASKS).update(random_gradients(0), None)
    assert_trees_close(updates, expected, rtol=1e-5, atol=1e-6)


def test_another_number_of_tasks_is_a_mistake_that_is_named():
    tx = optim.per_task(optax.adam(0.1), 4)
    with pytest.raises(ValueError, match="of 3 tasks, the optimizer is for 4"):
        tx.update(random_gradients(0), tx.init(random_params()))
