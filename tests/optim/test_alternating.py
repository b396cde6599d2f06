import functools

import numpy as np
import optax
import pytest
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
    start,
    task_gradients_of,
)

from mtl_jax import optim


@functools.cache
def compiled(name):
    optimizer = optim.alternating(TRANSFORMS[name]())
    return optimizer.init, compiled_step(optimizer)


def loop_of_optax(tx, targets, curvatures, steps, active=(True,) * TASKS):
    """Equation 2 in words: for each task in turn, its gradient, the one state."""
    by_hand = ByHand(tx, start())
    state = tx.init(start())
    history = []
    for _ in range(steps):
        losses = np.zeros(len(targets))
        for k in np.flatnonzero(active[: len(targets)]):
            loss, gradient = loss_and_gradient(
                by_hand.params, targets[k], curvatures[k]
            )
            state = by_hand.step(gradient, state)
            losses[k] = loss
        history.append(losses)
    return by_hand.params, state, np.array(history)


def test_equation_2_by_hand_for_two_tasks():
    targets, curvatures = quadratics(0, tasks=2)
    adam = AdamByHand(0.1, 2 * SIZE)
    t = np.concatenate([targets, -targets], axis=1)
    c = np.concatenate([curvatures, curvatures], axis=1)
    w = np.concatenate([np.zeros(SIZE), np.ones(SIZE)])
    for _ in range(STEPS):
        for k in (0, 1):
            w = adam.step(w, c[k] * (w - t[k]))
    params, state, _ = run(*compiled("adam"), targets, curvatures)
    np.testing.assert_allclose(params["w"], w[:SIZE], atol=5e-5)
    np.testing.assert_allclose(params["b"]["v"], w[SIZE:], atol=5e-5)
    assert state[0].count == 2 * STEPS


@pytest.mark.parametrize(
    "name", ["adam", "adamw", "sgd momentum", "lion", "injected schedule"]
)
def test_all_tasks_step_in_turn_through_one_optax_state(name):
    targets, curvatures = quadratics(1)
    expected = loop_of_optax(TRANSFORMS[name](), targets, curvatures, STEPS)
    actual = run(*compiled(name), targets, curvatures)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("active", [(1, 0, 1), (0, 0, 1), (0, 0, 0)], ids=str)
def test_inactive_tasks_take_no_part(active):
    active = np.array(active, bool)
    targets, curvatures = quadratics(3)
    # Not finite, where nobody should look.
    targets[~active] = np.nan
    expected = loop_of_optax(TRANSFORMS["adamw"](), targets, curvatures, 3, active)
    actual = run(*compiled("adamw"), targets, curvatures, 3, active=active)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if not active.any():
        fresh = compiled("adamw")[0](start())
        assert_trees_equal(actual[:2], (start(), fresh))


def test_one_task_is_plain_optax_and_the_same_as_an_independent_one():
    targets, curvatures = quadratics(4, tasks=1)
    params, state, _ = run(*compiled("adam"), targets, curvatures)
    expected = loop_of_optax(TRANSFORMS["adam"](), targets, curvatures, STEPS)
    assert_trees_close((params, state), expected[:2], rtol=1e-4, atol=1e-5)
    other = optim.independent(TRANSFORMS["adam"](), 1)
    same, own, _ = run(other.init, compiled_step(other), targets, curvatures)
    assert_trees_close(same, params, rtol=1e-6, atol=1e-6)
    own = row(own, 0)
    assert_trees_close(own, state, rtol=1e-6, atol=1e-6)


def test_without_a_state_it_is_the_same_as_independent_optimizers():
    targets, curvatures = quadratics(5)
    optimizers = (
        optim.alternating(optax.sgd(0.1)),
        optim.independent(optax.sgd(0.1), TASKS),
    )
    results = [
        run(optimizer.init, compiled_step(optimizer), targets, curvatures)
        for optimizer in optimizers
    ]
    assert_trees_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)


def test_the_carry_passes_from_task_to_task():
    losses = [
        lambda w, carry, k=k: (carry * 1.0 + 0 * w.sum(), carry * 10 + k)
        for k in (1, 2, 3)
    ]
    optimizer = optim.alternating(optax.sgd(0.1))
    w = np.ones(2, np.float32)
    _, _, carry, values = optimizer.update(
        optim.task_gradients(losses),
        optimizer.init(w),
        w,
        np.float32(9),
        (True, False, True),
    )
    assert carry == 913
    np.testing.assert_array_equal(values, [9, 0, 91])


def test_without_jit_it_is_the_same():
    targets, curvatures = quadratics(6)
    optimizer = optim.alternating(TRANSFORMS["adam"]())
    params, state, carry, losses = optimizer.update(
        task_gradients_of(targets, curvatures), optimizer.init(start()), start()
    )
    assert carry is None
    expected = run(*compiled("adam"), targets, curvatures, 1)
    assert_trees_close((params, state), expected[:2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses, expected[2][0], rtol=1e-5)
