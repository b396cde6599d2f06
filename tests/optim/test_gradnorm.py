import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optim_problems import (
    TASKS,
    AdamByHand,
    as_matrix,
    as_vector,
    random_gradients,
    random_params,
    without,
)

from mtl_jax import optim

SEEDS = st.integers(0, 2**31 - 1)
KERNEL = "encoder/kernel"


def by_finite_differences(function, w):
    """The gradient of a function of w, which is piecewise linear in each element."""
    steps = 1e-5 * np.diag(w)
    return np.array(
        [(function(w + h) - function(w - h)) / (2 * h.sum()) for h in steps]
    )


class GradNormByHand:
    """Chen et al. 2018, algorithm 1, in NumPy and float64, but for a least weight."""

    def __init__(self, tasks, alpha, learning_rate, by_differences=True):
        self.alpha, self.tasks, self.by_differences = alpha, tasks, by_differences
        self.w, self.adam = np.ones(tasks), AdamByHand(learning_rate, tasks)
        self.initial_losses = None

    def step(self, shared_gradients, losses):
        """The weights of this step; those of the next one are left in `w`."""
        if self.initial_losses is None:
            self.initial_losses = losses
        before = self.w

        def norms(w):
            return np.linalg.norm(w[:, None] * shared_gradients, axis=1)

        progress = losses / self.initial_losses
        r = progress / progress.mean()
        target = norms(self.w).mean() * r**self.alpha
        if self.by_differences:
            gradient = by_finite_differences(
                lambda w: np.abs(norms(w) - target).sum(), self.w
            )
        else:
            gradient = np.sign(norms(self.w) - target) * norms(np.ones(self.tasks))
        self.w = np.maximum(self.adam.step(self.w, gradient), 1e-3)
        self.w = self.w * self.tasks / self.w.sum()
        return before


@functools.cache
def compiled(alpha=1.5, learning_rate=0.025, shared=None, tasks=TASKS):
    predicate = None if shared is None else (lambda path: path == shared)
    tx = optim.gradnorm(tasks, alpha, learning_rate, predicate)
    return tx.init(random_params()), jax.jit(tx.update)


def losses_at(seed, tasks=TASKS):
    return np.random.default_rng(seed).uniform(0.2, 3, tasks).astype(np.float32)


def test_the_defaults_are_the_papers():
    update = jax.jit(optim.gradnorm(TASKS).update)
    state, explicit = compiled(1.5, 0.025, None)
    for i in range(2):
        arguments = random_gradients(i), state
        _, state = update(*arguments, task_losses=losses_at(i))
        _, expected = explicit(*arguments, task_losses=losses_at(i))
        np.testing.assert_array_equal(state.weights, expected.weights)


@pytest.mark.parametrize(
    ("alpha", "learning_rate", "shared"),
    [(1.5, 0.025, None), (0.0, 0.1, KERNEL), (0.5, 0.01, "head/scale")],
)
def test_algorithm_1_by_hand(alpha, learning_rate, shared):
    state, update = compiled(alpha, learning_rate, shared)
    by_hand = GradNormByHand(TASKS, alpha, learning_rate)
    for i in range(12):
        gradients, losses = random_gradients(i), losses_at(i)
        chosen = {
            None: gradients,
            KERNEL: gradients["encoder"]["kernel"],
            "head/scale": gradients["head"]["scale"],
        }[shared]
        weights = by_hand.step(as_matrix(chosen), losses.astype(np.float64))
        np.testing.assert_allclose(state.weights, weights, atol=1e-4)
        updates, state = update(gradients, state, task_losses=losses)
        # Stepped with the weights from before this step's update.
        np.testing.assert_allclose(
            as_vector(updates), weights @ as_matrix(gradients), atol=1e-3
        )
    np.testing.assert_allclose(state.weights, by_hand.w, atol=1e-4)
    np.testing.assert_array_equal(state.initial_losses, losses_at(0))
    assert np.ptp(state.weights) > 0.01


def test_the_weights_gradient_is_that_of_the_l1_objective():
    """By automatic differentiation."""
    gradients, losses = random_gradients(3), losses_at(3)
    norms = jnp.linalg.norm(jnp.array(as_matrix(gradients), jnp.float32), axis=1)

    def objective(weights):
        g = weights * norms
        target = jax.lax.stop_gradient(g.mean() * jnp.ones(TASKS))
        return jnp.abs(g - target).sum()

    expected = jax.grad(objective)(jnp.ones(TASKS))
    state, update = compiled()
    _, state = update(gradients, state, task_losses=losses)
    # Adam's first moment after one step is a tenth of the gradient.
    np.testing.assert_allclose(10 * state.opt_state[0].mu, expected, rtol=1e-5)


@functools.cache
def scanned(tasks, alpha=1.5):
    """Weights after each of many steps, given norms and losses [steps, N]."""
    tx = optim.gradnorm(tasks, alpha)

    def weights(norms, losses, active):
        def step(state, inputs):
            norms, losses, active = inputs
            gradients = {"w": jnp.where(active, norms, 0)[:, None]}
            updates, state = tx.update(
                gradients, state, task_losses=losses, active=active
            )
            return state, (state, updates)

        return jax.lax.scan(step, tx.init(None), (norms, losses, active))[1]

    return jax.jit(weights)


@given(SEEDS, st.floats(0, 15), st.floats(0, 15))
def test_weights_are_positive_and_add_up_to_n(seed, decades, decades_of_losses):
    rng = np.random.default_rng(seed)
    norms = 10 ** rng.uniform(-decades, decades, (60, 4))
    losses = 10 ** rng.uniform(-decades_of_losses, decades_of_losses, (60, 4))
    norms[rng.random((60, 4)) < 0.1] = 0
    losses[rng.random((60, 4)) < 0.1] = 0
    active = rng.random((60, 4)) < rng.choice([0.3, 0.7, 1.0])
    states, updates = scanned(4)(
        norms.astype(np.float32), losses.astype(np.float32), active
    )
    assert np.isfinite(updates["w"]).all()
    assert (states.weights > 0).all()
    np.testing.assert_allclose(states.weights.sum(1), 4, rtol=1e-5)


@given(SEEDS, st.permutations(range(4)))
def test_tasks_under_other_numbers_are_the_same_tasks(seed, permutation):
    rng = np.random.default_rng(seed)
    norms, losses = rng.uniform(0.1, 9, (2, 60, 4)).astype(np.float32)
    active = rng.random((60, 4)) < 0.7
    order = np.array(permutation)
    states, updates = scanned(4)(norms, losses, active)
    again, same = scanned(4)(norms[:, order], losses[:, order], active[:, order])
    np.testing.assert_allclose(states.weights[:, order], again.weights, atol=1e-3)
    np.testing.assert_allclose(updates["w"], same["w"], rtol=1e-3)


def test_a_weight_that_is_driven_down_stays_positive():
    norms = np.tile(np.float32([1000, 1, 1, 1]), (60, 1))
    states, _ = scanned(4)(norms, np.ones((60, 4), np.float32), np.ones((60, 4), bool))
    assert 5e-4 < states.weights[-1, 0] < 0.05


def at_scale(seed, *decades):
    """Log-uniform numbers [60, 4], at each step and task of one of the scales."""
    rng = np.random.default_rng(seed)
    powers = rng.choice(decades, (60, 4)) + rng.uniform(-1, 1, (60, 4))
    return np.float32(10.0**powers)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize(
    ("norms", "losses"),
    [
        (at_scale(0, 15), at_scale(1, 0)),
        (at_scale(2, -15), at_scale(3, 0)),
        (at_scale(4, 0), at_scale(5, 15)),
        (at_scale(6, 0), at_scale(7, -15)),
        (at_scale(8, -15, 0, 15), at_scale(9, -15, 0, 15)),
    ],
    ids=["huge norms", "tiny norms", "huge losses", "tiny losses", "all of them"],
)
def test_algorithm_1_at_other_scales(alpha, norms, losses):
    # Beside 1e15, differences in float64 do not see a 1.
    is_mixed = norms.max() > 1e3 * norms.min()
    by_hand = GradNormByHand(4, alpha, 0.025, by_differences=not is_mixed)
    expected, totals = [], []
    for norm, loss in zip(norms, losses, strict=True):
        # As an only element, each norm is a gradient.
        before = by_hand.step(norm[:, None].astype(np.float64), loss.astype(np.float64))
        totals.append(before @ norm.astype(np.float64))
        expected.append(by_hand.w)
    states, updates = scanned(4, alpha)(norms, losses, np.ones((60, 4), bool))
    np.testing.assert_allclose(states.weights, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(updates["w"][:, 0], totals, rtol=1e-3)


@given(SEEDS, st.integers(0, 45), st.integers(-45, 45))
def test_units_of_gradients_and_of_one_tasks_loss_do_not_matter(seed, power, other):
    # Upwards only: beside gradients much smaller than 1, Adam's epsilon counts.
    norms, losses = at_scale(seed, 0), at_scale(seed + 1, 0)
    active = np.ones((60, 4), bool)
    states, _ = scanned(4)(norms, losses, active)
    unit = np.float32([1, 2.0**other, 1, 1])
    again, _ = scanned(4)(norms * np.float32(2.0**power), losses * unit, active)
    np.testing.assert_allclose(again.weights, states.weights, rtol=1e-4)


@given(
    st.sampled_from([0, 1e-15, 1e-3, 2, 3e7, 1e15]),
    st.sampled_from([0, 1e-15, 0.7, 1e15]),
)
def test_equal_tasks_keep_equal_weights(norm, loss):
    falling = np.geomspace(8, 0.1, 60)[:, None] * np.ones(4)
    states, updates = scanned(4)(
        np.float32(norm * falling), np.float32(loss * falling), np.ones((60, 4), bool)
    )
    np.testing.assert_allclose(states.weights, 1, rtol=1e-6)
    np.testing.assert_allclose(updates["w"], 4 * norm * falling[:, :1], rtol=1e-5)


@given(SEEDS)
def test_one_task_keeps_its_weight(seed):
    norms, losses = at_scale(seed, -15, 0, 15)[:, :1], at_scale(seed + 1, -15, 15)
    states, updates = scanned(1)(norms, losses[:, :1], np.ones((60, 1), bool))
    np.testing.assert_array_equal(states.weights, 1)
    np.testing.assert_array_equal(updates["w"], norms)


def test_slower_tasks_gain_weight():
    # Task k's loss falls by 0.9^k a step; the two fastest lose weight alike.
    norms, active = np.ones((60, 4), np.float32), np.ones((60, 4), bool)
    losses = np.stack([0.9 ** (np.arange(60) * k) for k in range(4)], 1)
    states, _ = scanned(4)(norms, losses.astype(np.float32), active)
    assert (np.diff(states.weights[20])[:2] < -0.1).all()


@pytest.mark.parametrize("active", [(1, 0, 1), (0, 1, 0), (0, 0, 0)], ids=str)
def test_inactive_tasks_take_no_part(active):
    active = np.array(active, bool)
    state, update = compiled()
    for i in range(3):
        _, state = update(random_gradients(i), state, task_losses=losses_at(i))
    gradients, losses = without(random_gradients(5), active), losses_at(5)
    _, after = update(
        gradients, state, task_losses=np.where(active, losses, 0), active=active
    )
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[~active], old[~active])
    np.testing.assert_array_equal(after.opt_state[0].count, 3 + active)
    np.testing.assert_allclose(after.weights.sum(), TASKS, rtol=1e-6)
    # Left out of the means: the same as if there were the active tasks alone.
    if active.sum() == 2:
        assert not np.array_equal(after.weights[active], state.weights[active])
        norms = np.linalg.norm(as_matrix(gradients), axis=1)[active]
        g = np.asarray(state.weights)[active] * norms
        progress = losses[active] / np.asarray(state.initial_losses)[active]
        target = g.mean() * (progress / progress.mean()) ** 1.5
        expected = np.sign(g - target) * norms
        moments = after.opt_state[0].mu - 0.9 * state.opt_state[0].mu
        np.testing.assert_allclose(10 * moments[active], expected, rtol=1e-3)


def test_initial_losses_are_those_of_a_tasks_first_active_step():
    state, update = compiled()
    steps = [
        ((1, 0, 0), (2.0, 5.0, 5.0), (2.0, 0.0, 0.0)),
        ((0, 1, 1), (3.0, 4.0, 0.0), (2.0, 4.0, 0.0)),
        # A loss of zero is no scale for those to come.
        ((1, 1, 1), (1.0, 1.0, 7.0), (2.0, 4.0, 7.0)),
    ]
    for i, (active, losses, expected) in enumerate(steps):
        active = np.array(active, bool)
        _, state = update(
            without(random_gradients(i), active),
            state,
            task_losses=np.float32(losses),
            active=active,
        )
        np.testing.assert_array_equal(state.initial_losses, expected)
        assert np.isfinite(state.weights).all()


def test_only_shared_parameters_count():
    state, update = compiled(shared=KERNEL)
    gradients = random_gradients(0)
    other = {**gradients, "head": {"scale": 100 * gradients["head"]["scale"]}}
    (_, first), (_, second) = (
        update(g, state, task_losses=losses_at(0)) for g in (gradients, other)
    )
    np.testing.assert_array_equal(first.weights, second.weights)
    _, everything = update(
        {**gradients, "encoder": other["encoder"]}, state, task_losses=losses_at(0)
    )
    np.testing.assert_array_equal(first.weights, everything.weights)


def test_a_predicate_that_chooses_nothing_is_named():
    tx = optim.gradnorm(TASKS, shared=lambda path: "block9" in path)
    with pytest.raises(ValueError, match="none of the 3 parameters.*encoder/bias"):
        tx.init(random_params())


def test_missing_losses_and_other_numbers_of_tasks_are_named():
    tx = optim.gradnorm(TASKS)
    state = tx.init(random_params())
    with pytest.raises(ValueError, match="task_losses"):
        tx.update(random_gradients(0), state)
    with pytest.raises(ValueError, match="of 2 tasks, the optimizer is for 3"):
        tx.update(random_gradients(0, 2), state, task_losses=jnp.ones(2))


def test_the_weights_learning_rate_may_be_a_schedule():
    tx = optim.gradnorm(
        TASKS, learning_rate=optax.piecewise_constant_schedule(0.1, {1: 0})
    )
    state, update = tx.init(random_params()), jax.jit(tx.update)
    weights = []
    for i in range(3):
        _, state = update(random_gradients(i), state, task_losses=losses_at(i))
        weights.append(np.array(state.weights))
    assert np.abs(weights[0] - 1).max() > 0.01
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-6)
    np.testing.assert_allclose(weights[2], weights[0], rtol=1e-6)
