"""A task that is not active is to every method as if it were not there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_problems import (
    TASKS,
    assert_trees_close,
    compiled_step,
    quadratics,
    random_gradients,
    random_params,
    run,
    stacked,
)

from mtl_jax import optim

KEY = jax.random.key(0)
WEIGHTS = np.float32([0.5, 2.0, 1.0])

# Of the tasks at some places. The order in which PCGrad visits one other task is none.
JOINT = {
    "weighted_sum": lambda places: optim.weighted_sum(WEIGHTS[places]),
    "scale_by_task": lambda places: optax.chain(
        optim.scale_by_task(WEIGHTS[places]), optax.stateless(summed)
    ),
    "from_gram": lambda places: optim.from_gram(
        lambda gram: 1 / jnp.maximum(jnp.sqrt(jnp.diagonal(gram)), 1e-3)
    ),
    "pcgrad": lambda places: optim.pcgrad(KEY),
    "gradnorm": lambda places: optim.gradnorm(len(places), learning_rate=0.1),
    "per_task": lambda places: optim.per_task(optax.adam(0.1), len(places)),
}
# One group: which tasks share one of several depends on their number.
SEQUENTIAL = {
    "independent": optim.independent,
    "alternating": lambda tx, num_tasks: optim.alternating(tx),
    "slots": lambda tx, num_tasks: optim.random_grouping(tx, 1, KEY),
    "groups of tasks": lambda tx, num_tasks: optim.random_grouping(
        tx, 1, KEY, states="task", num_tasks=num_tasks
    ),
    "weighted": lambda tx, num_tasks: optim.weighted(
        optim.gradnorm_weighting(num_tasks, learning_rate=0.1), tx
    ),
}


def summed(updates, params=None):
    del params
    return jax.tree.map(lambda leaf: leaf.sum(0), updates)


def without_row(tree, absent):
    """Leaves of another length than the tasks' stay."""
    return jax.tree.map(
        lambda x: np.delete(x, absent, 0) if np.shape(x)[:1] == (TASKS,) else x, tree
    )


@functools.cache
def joint(name, places):
    tx = JOINT[name](list(places))

    @jax.jit
    def steps(gradients, losses, active=None):
        def step(state, inputs):
            gradients, losses = inputs
            extra = {"task_losses": losses, "active": active}
            updates, state = optax.with_extra_args_support(tx).update(
                gradients, state, random_params(), **extra
            )
            return state, updates

        return jax.lax.scan(step, tx.init(random_params()), (gradients, losses))

    return steps


@functools.cache
def sequential(name, num_tasks):
    optimizer = SEQUENTIAL[name](optax.adam(0.1), num_tasks)
    return optimizer.init, compiled_step(optimizer)


def cases(test):
    """Random problems, tasks that are absent, and numbers in their gradients' place."""
    given_cases = given(
        st.integers(0, 2**31 - 1),
        st.integers(0, TASKS - 1),
        st.sampled_from([np.nan, np.inf, -np.inf, 1e38]),
    )
    return settings(deadline=None, max_examples=15)(given_cases(test))


@pytest.mark.parametrize("name", JOINT)
@cases
def test_a_joint_method_does_not_read_an_absent_gradient(name, seed, absent, value):
    gradients = stacked([random_gradients([seed, i]) for i in range(3)])
    losses = np.random.default_rng(seed).uniform(0.2, 3, (3, TASKS)).astype(np.float32)
    active = np.arange(TASKS) != absent
    present = tuple(np.flatnonzero(active).tolist())
    expected_state, expected = joint(name, present)(
        jax.tree.map(lambda leaf: leaf[:, active], gradients), losses[:, active]
    )
    for leaf in jax.tree.leaves((gradients, losses)):
        leaf[:, absent] = value
    state, updates = joint(name, tuple(range(TASKS)))(gradients, losses, active)
    assert_trees_close(updates, expected, rtol=1e-4, atol=1e-5)
    # The absent task's own state among them.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert_trees_close(without_row(state, absent), expected_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEQUENTIAL)
@cases
def test_a_sequential_method_does_not_read_an_absent_gradient(
    name, seed, absent, value
):
    targets, curvatures = quadratics(seed)
    active = np.arange(TASKS) != absent
    init, step = sequential(name, TASKS - 1)
    expected = run(init, step, targets[active], curvatures[active], 3)
    targets[absent] = value
    init, step = sequential(name, TASKS)
    params, state, losses = run(init, step, targets, curvatures, 3, active=active)
    np.testing.assert_array_equal(losses[:, absent], 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    actual = params, without_row(state, absent), losses[:, active]
    assert_trees_close(actual, expected, rtol=1e-4, atol=1e-5)
