"""One backward pass of a weighted sum, beside the same from all stacked gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_problems import quadratic, quadratics, start

from mtl_jax import optim

TASKS, STEPS = 3, 5
SHARED = "w"


def is_shared(path):
    return path == SHARED


def losses_at(problem):
    """Loss functions that count their calls in the carry."""
    targets, curvatures = problem

    def of_task(k, params, carry):
        return quadratic(params, targets[k], curvatures[k]), carry + 1

    return [functools.partial(of_task, k) for k in range(TASKS)]


@functools.cache
def compiled(shared):
    predicate = is_shared if shared else None
    tx = optax.sgd(0.02, momentum=0.9)
    cheap = optim.weighted(optim.gradnorm_weighting(TASKS, 1.5, 0.1, predicate), tx)
    stacked = optax.chain(optim.gradnorm(TASKS, 1.5, 0.1, predicate), tx)

    @jax.jit
    def step(problem, params, state, active):
        gradients = optim.task_gradients(losses_at(problem))
        return cheap.update(gradients, state, params, jnp.int32(0), active)

    @jax.jit
    def reference(problem, params, state, active):
        def values(params):
            return jnp.stack([loss(params, 0)[0] for loss in losses_at(problem)])

        gradients = jax.tree.map(
            lambda g: jnp.where(active.reshape(-1, *[1] * (g.ndim - 1)), g, 0),
            jax.jacrev(values)(params),
        )
        updates, state = stacked.update(
            gradients, state, params, task_losses=values(params), active=active
        )
        return optax.apply_updates(params, updates), state

    return cheap, stacked, step, reference


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**31 - 1),
    st.booleans(),
    st.lists(st.booleans(), min_size=TASKS, max_size=TASKS).filter(sum),
)
def test_gradnorm_at_one_layer_steps_as_from_all_gradients(seed, shared, active):
    cheap, stacked, step, reference = compiled(shared)
    problem = quadratics(seed, TASKS)
    ours = theirs = start()
    state, expected_state = cheap.init(ours), stacked.init(theirs)
    active = np.array(active)
    for _ in range(STEPS):
        ours, state, calls, losses = step(problem, ours, state, active)
        theirs, expected_state = reference(problem, theirs, expected_state, active)
        assert int(calls) == active.sum()
        np.testing.assert_allclose(
            state.weighting.weights, expected_state[0].weights, rtol=1e-5
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert (np.ptp(state.weighting.weights) > 1e-5) == (active.sum() > 1)
    np.testing.assert_array_equal(losses != 0, active)


def test_a_task_that_is_not_active_keeps_its_weight():
    cheap, _, step, _ = compiled(True)
    params = start()
    state = cheap.init(params)
    active = np.array([True, False, True])
    _, state, _, _ = step(quadratics(0, TASKS), params, state, active)
    assert state.weighting.weights[1] == 1
    assert state.weighting.initial_losses[1] == 0
    assert np.ptp(state.weighting.weights) > 0


def test_nothing_moves_where_no_task_is_active():
    cheap, _, step, _ = compiled(True)
    params = start()
    state = cheap.init(params)
    new, new_state, calls, losses = step(
        quadratics(0, TASKS), params, state, np.zeros(TASKS, bool)
    )
    assert int(calls) == 0
    np.testing.assert_array_equal(losses, 0)
    for a, b in zip(
        jax.tree.leaves((new, new_state)), jax.tree.leaves((params, state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_weights_of_ones_own_need_no_gradients():
    """The backward pass is that of the weighted sum, and the only one."""
    weights = jnp.array([0.5, 2.0, 0.0])
    fixed = optim.LossWeighting(
        lambda params: (), lambda losses, shared_gradients, state, active: (weights, ())
    )
    optimizer = optim.weighted(fixed, optax.sgd(1.0))
    problem, params = quadratics(3, TASKS), start()

    def step(params):
        return optimizer.update(
            optim.task_gradients(losses_at(problem)),
            optimizer.init(params),
            params,
            jnp.int32(0),
        )[0]

    def total(params):
        values = [loss(params, 0)[0] for loss in losses_at(problem)]
        return jnp.stack(values) @ weights

    expected = jax.tree.map(jnp.subtract, params, jax.grad(total)(params))
    moved = jax.jit(step)(params)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_predicate_must_choose_something():
    weighting = optim.gradnorm_weighting(TASKS, shared=lambda path: path == "nowhere")
    with pytest.raises(ValueError, match="holds for none of the 2 parameters"):
        optim.weighted(weighting, optax.sgd(1.0)).init(start())


def test_choose_puts_back_what_it_took():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    leaves, put_back = optim.choose(tree, lambda path: path in ("a/c", "d"))
    assert leaves == [2, 3]
    assert put_back([20, 30]) == {"a": {"b": 1, "c": 20}, "d": 30}
    everything, put_all = optim.choose(tree, None)
    assert everything == [1, 2, 3]
    assert put_all(everything) == tree
