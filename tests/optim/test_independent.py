import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_problems import (
    SIZE,
    STEPS,
    TASKS,
    TRANSFORMS,
    AdamByHand,
    ByHand,
    assert_trees_close,
    assert_trees_equal,
    compiled_step,
    loss_and_gradient,
    quadratics,
    row,
    run,
    stacked,
    start,
    task_gradients_of,
)

from mtl_jax import optim


@functools.cache
def compiled(name, tasks=TASKS):
    optimizer = optim.independent(TRANSFORMS[name](), tasks)
    return optimizer.init, compiled_step(optimizer)


def test_equation_3_by_hand_for_two_tasks():
    targets, curvatures = quadratics(0, tasks=2)
    first, second = AdamByHand(0.1, 2 * SIZE), AdamByHand(0.1, 2 * SIZE)
    # Both leaves as one vector.
    t = np.concatenate([targets, -targets], axis=1)
    c = np.concatenate([curvatures, curvatures], axis=1)
    w = np.concatenate([np.zeros(SIZE), np.ones(SIZE)])

    init, step = compiled("adam", 2)
    params = start()
    state = init(params)
    for _ in range(8):
        params, state, losses = step(params, state, targets, curvatures)
        expected = [np.sum(c[0] * (w - t[0]) ** 2) / 2]
        w = first.step(w, c[0] * (w - t[0]))
        expected.append(np.sum(c[1] * (w - t[1]) ** 2) / 2)
        w = second.step(w, c[1] * (w - t[1]))
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
        np.testing.assert_allclose(params["w"], w[:SIZE], atol=5e-5)
        np.testing.assert_allclose(params["b"]["v"], w[SIZE:], atol=5e-5)
    # Each state has seen its own task only.
    moments = state[0].mu["w"]
    np.testing.assert_allclose(moments[0], first.m[:SIZE], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(moments[1], second.m[:SIZE], rtol=1e-3, atol=1e-4)


def loop_of_optax(tx, targets, curvatures, steps):
    """The method in words: for each task in turn, its gradient, its own state."""
    by_hand = ByHand(tx, start())
    states = [tx.init(start()) for _ in targets]
    history = []
    for _ in range(steps):
        losses = []
        for k, (target, curvature) in enumerate(zip(targets, curvatures, strict=True)):
            loss, gradient = loss_and_gradient(by_hand.params, target, curvature)
            states[k] = by_hand.step(gradient, states[k])
            losses.append(loss)
        history.append(np.array(losses))
    return by_hand.params, stacked(states), np.array(history)


def run_compiled(name, targets, curvatures, steps, **options):
    init, step = compiled(name, len(targets))
    return run(init, step, targets, curvatures, steps, **options)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_task_steps_in_turn_through_its_own_optax_state(name):
    targets, curvatures = quadratics(1)
    expected = loop_of_optax(TRANSFORMS[name](), targets, curvatures, STEPS)
    actual = run_compiled(name, targets, curvatures, STEPS)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)


@settings(max_examples=8)
@given(st.integers(0, 2**31 - 1), st.integers(1, 4))
def test_random_quadratics_agree_with_a_loop(seed, steps):
    targets, curvatures = quadratics(seed)
    expected = loop_of_optax(TRANSFORMS["adam"](), targets, curvatures, steps)
    actual = run_compiled("adam", targets, curvatures, steps)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd momentum"])
def test_one_task_is_plain_optax(name):
    tx = TRANSFORMS[name]()
    targets, curvatures = quadratics(2, tasks=1)
    params = start()
    state = tx.init(params)
    for _ in range(STEPS):
        gradient = loss_and_gradient(params, targets[0], curvatures[0])[1]
        updates, state = tx.update(gradient, state, params)
        params = jax.tree.map(np.add, params, updates)
    actual, actual_state, _ = run_compiled(name, targets, curvatures, STEPS)
    assert_trees_close(actual, params, rtol=1e-4, atol=1e-5)
    one = row(actual_state, 0)
    assert_trees_close(one, state, rtol=1e-4, atol=1e-5)


def test_own_states_are_not_the_same_as_one_state():
    """Guards the tests above: a shared state would be noticed."""
    targets, curvatures = quadratics(1)
    tx = TRANSFORMS["adam"]()
    params = start()
    state = tx.init(params)
    for _ in range(STEPS):
        for target, curvature in zip(targets, curvatures, strict=True):
            gradient = loss_and_gradient(params, target, curvature)[1]
            updates, state = tx.update(gradient, state, params)
            params = jax.tree.map(np.add, params, updates)
    actual, _, _ = run_compiled("adam", targets, curvatures, STEPS)
    assert np.abs(actual["w"] - params["w"]).max() > 0.05


@pytest.mark.parametrize("active", [(1, 0, 1), (0, 1, 0), (0, 0, 0)], ids=str)
def test_inactive_tasks_take_no_part(active):
    active = np.array(active, bool)
    targets, curvatures = quadratics(3)
    init, step = compiled("adam")
    # States and params that are not fresh: zeros would stay zeros by themselves.
    params, state, _ = step(start(), init(start()), targets, curvatures)
    after, after_state, losses = step(params, state, targets, curvatures, active)

    np.testing.assert_array_equal(losses[~active], 0)
    assert (losses[active] > 0).all()
    for old, new in zip(
        jax.tree.leaves(state), jax.tree.leaves(after_state), strict=True
    ):
        np.testing.assert_array_equal(new[~active], old[~active])
        assert all(not np.array_equal(new[k], old[k]) for k in np.flatnonzero(active))

    tx = TRANSFORMS["adam"]()
    expected = params
    for k in np.flatnonzero(active):
        own = row(state, k)
        gradient = loss_and_gradient(expected, targets[k], curvatures[k])[1]
        updates, _ = tx.update(gradient, own, expected)
        expected = jax.tree.map(np.add, expected, updates)
    if active.any():
        assert_trees_close(after, expected, rtol=1e-5, atol=1e-6)
    else:
        assert_trees_equal(after, params)


def test_all_tasks_active_is_no_mask_at_all():
    targets, curvatures = quadratics(5)
    plain = run_compiled("adam", targets, curvatures, 3)
    masked = run_compiled("adam", targets, curvatures, 3, active=np.ones(TASKS, bool))
    for a, b in zip(plain, masked, strict=True):
        assert_trees_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("active", "digits", "seen"),
    [
        (None, 9123, [9, 91, 912]),
        ((True, False, True), 913, [9, 0, 91]),
        ((False, False, False), 9, [0, 0, 0]),
    ],
    ids=str,
)
def test_the_carry_passes_from_task_to_task_in_order(active, digits, seen):
    # Every task appends its number to the digits, and reports what it was given.
    losses = [
        lambda w, carry, k=k: (carry * 1.0 + 0 * w.sum(), carry * 10 + k)
        for k in (1, 2, 3)
    ]
    optimizer = optim.independent(optax.sgd(0.1), 3)
    w = jnp.ones(2)
    active = None if active is None else jnp.array(active)
    _, _, carry, values = jax.jit(
        lambda w, state: optimizer.update(
            optim.task_gradients(losses), state, w, jnp.float32(9), active
        )
    )(w, optimizer.init(w))
    assert carry == digits
    np.testing.assert_array_equal(values, seen)


def test_the_order_of_the_tasks_matters():
    targets, curvatures = quadratics(6)
    forward, _, _ = run_compiled("sgd momentum", targets, curvatures, 1)
    backward, _, _ = run_compiled(
        "sgd momentum", targets[::-1].copy(), curvatures[::-1].copy(), 1
    )
    assert np.abs(forward["w"] - backward["w"]).max() > 1e-3


def test_a_parameter_that_a_task_does_not_touch_is_never_moved_by_it():
    losses = [
        lambda p, carry: (jnp.sum((p["a"] - 1) ** 2), carry),
        lambda p, carry: (jnp.sum((p["b"] - 1) ** 2), carry),
    ]
    optimizer = optim.independent(optax.adam(0.1), 2)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    state = optimizer.init(params)
    gradients = optim.task_gradients(losses)
    first_only = jnp.array([True, False])
    for _ in range(3):
        params, state, _, _ = optimizer.update(
            gradients, state, params, None, first_only
        )
    np.testing.assert_array_equal(params["b"], 0)
    assert (params["a"] > 0).all()
    params, state, _, _ = optimizer.update(gradients, state, params)
    np.testing.assert_array_equal(state[0].mu["b"][0], 0)
    np.testing.assert_array_equal(state[0].mu["a"][1], 0)
    assert (state[0].nu["b"][1] > 0).all()


def test_without_jit_it_is_the_same():
    targets, curvatures = quadratics(7)
    optimizer = optim.independent(TRANSFORMS["adam"](), TASKS)
    gradients = task_gradients_of(targets, curvatures)
    params, state, carry, losses = optimizer.update(
        gradients, optimizer.init(start()), start()
    )
    assert carry is None
    actual = run_compiled("adam", targets, curvatures, 1)
    assert_trees_close((params, state), actual[:2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses, actual[2][0], rtol=1e-5)


def test_states_are_replaced_in_place():
    """As scanned input and output, the states would need their memory twice."""
    size, n = 100_000, 8
    optimizer = optim.independent(optax.adam(0.1), n)
    gradients = optim.task_gradients(
        [lambda w, carry, k=k: (jnp.sum((w - k) ** 2), carry) for k in range(n)]
    )

    def update(w, state, active):
        return optimizer.update(gradients, state, w, active=active)[:2]

    w = jax.ShapeDtypeStruct((size,), jnp.float32)
    active = jax.ShapeDtypeStruct((n,), bool)
    step = jax.jit(update, donate_argnums=(0, 1)).lower(
        w, jax.eval_shape(optimizer.init, w), active
    )
    # Of one task there are some copies and gradients.
    memory = step.compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * 4 * size
