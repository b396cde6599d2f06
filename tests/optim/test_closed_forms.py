"""What defines each of the methods that need no solver, on random gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_problems import (
    TASKS,
    as_matrix,
    as_vector,
    random_gradients,
    random_params,
    stacked,
)

from mtl_jax import optim
from mtl_jax.optim import _gradvac

KEY = jax.random.key(3)
SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.lists(st.sampled_from([-15, -6, 0, 6, 15]), min_size=3, max_size=3)
PREF = np.float32([0.5, 2, 1])
# One program for each, whatever the gradients.
few = settings(deadline=None, max_examples=30)


def at_scales(seed, exponents):
    scales = 10.0 ** np.array(exponents)
    return jax.tree.map(
        lambda leaf: np.float32(leaf * scales.reshape(-1, *(1,) * (leaf.ndim - 1))),
        random_gradients(seed),
    )


def units(gradients):
    matrix = as_matrix(gradients)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@functools.cache
def compiled(make, *arguments):
    return jax.jit(make(*arguments).update)


def updated(make, *arguments, gradients):
    """A first step."""
    state = make(*arguments).init(random_params())
    return as_vector(compiled(make, *arguments)(gradients, state)[0])


@given(SEEDS, SCALES)
@few
def test_imtl_g_projects_equally_on_all(seed, exponents):
    gradients = at_scales(seed, exponents)
    update = updated(optim.imtl_g, gradients=gradients)
    along = units(gradients) @ update
    np.testing.assert_allclose(along, along[0], rtol=1e-3)


def test_imtl_g_of_dependent_gradients():
    weights = jax.jit(optim.imtl_g().weights)
    for gradients, expected in [
        ([[1, 2, 2]] * 3, [1 / 3] * 3),
        ([[3, 0, 0], [-1, 0, 0], [0, 0, 0]], None),
        # The first two are one gradient, and have the same length together.
        ([[2, 0, 0], [2, 0, 0], [0, 2, 0]], [0.25, 0.25, 0.5]),
    ]:
        found, _ = weights(np.float32(gradients), ())
        if expected is None:
            np.testing.assert_allclose(found @ np.float32(gradients), 0, atol=1e-6)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@given(SEEDS, SCALES, st.booleans())
@few
def test_conflict_free_has_cosines_as_preferred(seed, exponents, is_even):
    gradients = at_scales(seed, exponents)
    arguments = () if is_even else (tuple(PREF.tolist()),)
    update = updated(optim.conflict_free, *arguments, gradients=gradients)
    direction = update / np.linalg.norm(update)
    cosines = units(gradients) @ direction
    assert (cosines > 0).all()
    preferred = np.ones(TASKS) if is_even else PREF
    np.testing.assert_allclose(
        cosines / preferred, cosines[0] / preferred[0], rtol=1e-3
    )
    # Its length is the sum of the projections.
    np.testing.assert_allclose(
        np.linalg.norm(update), (as_matrix(gradients) @ direction).sum(), rtol=1e-3
    )


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_aligned_gradients_have_equal_singular_values(mode):
    # They are positive: what one more of a task adds is its aligned gradient.
    preferences = np.float32(np.ones((TASKS + 1, TASKS)))
    preferences[1:] += np.eye(TASKS)
    run = jax.jit(
        jax.vmap(
            lambda gradients, p: optim.aligned_mtl(p, mode).update(gradients, ())[0],
            in_axes=(None, 0),
        )
    )
    for seed in range(30):
        gradients = random_gradients(seed)
        sums = as_matrix(run(gradients, preferences))
        found = np.linalg.svd(sums[1:] - sums[0], compute_uv=False)
        own = np.linalg.svd(as_matrix(gradients), compute_uv=False)
        value = {
            "min": own.min(),
            "median": np.median(own),
            "rmse": np.sqrt((own**2).mean()),
        }[mode]
        np.testing.assert_allclose(found, value, rtol=1e-3)


def test_gradvac_turns_gradients_to_the_targets():
    turn = jax.jit(_gradvac._turn)
    orders = np.array([[1, 0], [0, 1]])
    was_turned = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        matrix = rng.normal(size=(2, 5)) * 10.0 ** rng.uniform(-6, 6, (2, 1))
        targets = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
        coefficients, after = turn(
            np.float32(matrix @ matrix.T), orders, targets, np.float32(0.25)
        )
        directions = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        cosine = directions[0] @ directions[1]
        turned = np.float64(coefficients) @ matrix
        for i in range(2):
            found = turned[i] @ directions[1 - i] / np.linalg.norm(turned[i])
            target = targets[i, 1 - i]
            np.testing.assert_allclose(found, max(cosine, target), atol=1e-3)
            expected = 0.75 * target + 0.25 * cosine
            np.testing.assert_allclose(after[i, 1 - i], expected, atol=1e-5)
            was_turned += cosine < target
        np.testing.assert_array_equal(np.diag(after), np.diag(targets))
    assert 50 < was_turned < 150


def test_the_first_step_of_gradvac_is_one_of_pcgrad():
    one, other = (
        jax.jit(lambda gradients, tx=tx: tx.update(gradients, tx.init(None))[0])
        for tx in (optim.gradvac(TASKS, KEY), optim.pcgrad(KEY))
    )
    for seed in range(10):
        gradients = random_gradients(seed)
        np.testing.assert_allclose(
            as_vector(one(gradients)), as_vector(other(gradients)), rtol=1e-4, atol=1e-5
        )


def test_cr_mogm_without_memory_and_with_nothing_else():
    gradients = random_gradients(0)
    own = optim.excess_mtl(TASKS, 1.0, 0)
    for alpha, initial, expected in [
        (0.0, None, own.weights(gradients, own.init(random_params()))[0]),
        (1.0, (0.5, 0.25, 2.0), (0.5, 0.25, 2.0)),
    ]:
        tx = optim.cr_mogm(own, TASKS, alpha, initial)
        weights, state = tx.weights(gradients, tx.init(random_params()))
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
        np.testing.assert_array_equal(state.metrics()["weights"], weights)


def test_cr_mogm_takes_the_first_weight_of_a_task_that_comes_later():
    tx = optim.cr_mogm(optim.from_gram(jnp.diagonal), 2, alpha=0.5)
    state, found = tx.init(jnp.zeros(2)), []
    for scale, active in [(1, (1, 0)), (3, (1, 1)), (3, (1, 1))]:
        gradients = scale * np.eye(2, dtype=np.float32)
        _, state = tx.update(gradients, state, active=np.array(active, bool))
        found.append(np.array(state.weights))
    np.testing.assert_allclose(found, [[1, 0], [5, 9], [7, 9]])


@given(SEEDS)
@few
def test_krum_leaves_out_what_lies_far_from_the_others(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(6, 5)) + 3 * rng.normal(size=5)
    strange = rng.permutation(6)[:2]
    matrix[strange] = 100 * rng.normal(size=(2, 5))
    distances = np.linalg.norm(matrix[:, None] - matrix, axis=-1)
    scores = np.sort(distances, axis=1)[:, 1:3].sum(1)
    # Of a pair that is nearest to each other, the scores may be the same.
    chosen = np.argsort(scores)[:3]
    assert not set(chosen) & set(strange)
    update = updated(optim.krum, 2, 3, gradients=np.float32(matrix))
    np.testing.assert_allclose(update, matrix[chosen].mean(0), rtol=1e-3, atol=1e-4)


def test_random_weights_are_drawn_anew_and_evenly():
    tx = optim.random_weighting(KEY)
    active = np.array([True, True, False, True])

    def step(state, _):
        weights, state = tx.weights(jnp.zeros((4, 1)), state, active=active)
        return state, weights

    state, weights = jax.lax.scan(step, tx.init(None), length=2000)
    assert state.count == 2000
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert (weights[:, active] > 0).all()
    assert (weights[:, 2] == 0).all()
    # Of a softmax of three normal numbers, the deviation is 0.22.
    np.testing.assert_allclose(weights.mean(0)[active], 1 / 3, atol=0.02)
    np.testing.assert_allclose(weights.std(0)[active], 0.22, atol=0.02)
    assert len(np.unique(np.asarray(weights)[:, 0])) > 1900


def test_graddrop_keeps_one_sign_as_often_as_it_is_pure():
    gradients = np.float32(np.random.default_rng(0).normal(size=(4, 50)))
    tx = optim.graddrop(KEY)

    def step(state, _):
        updates, state = tx.update(gradients, state)
        return state, updates

    _, updates = jax.jit(lambda state: jax.lax.scan(step, state, length=1000))(
        tx.init(None)
    )
    positive, negative = (np.maximum(s * gradients, 0).sum(0) * s for s in (1, -1))
    is_positive = np.abs(updates - positive) < 1e-5
    is_negative = np.abs(updates - negative) < 1e-5
    assert (is_positive | is_negative).all()
    purity = (1 + gradients.sum(0) / np.abs(gradients).sum(0)) / 2
    np.testing.assert_allclose(is_positive.mean(0), purity, atol=0.07)


def test_what_graddrop_leaks():
    gradients = random_gradients(1)

    def update(leak):
        tx = optim.graddrop(KEY, leak=leak)
        return tx.update(gradients, tx.init(None))[0]

    everything = as_matrix(gradients).sum(0)
    np.testing.assert_allclose(as_vector(update([1.0] * 3)), everything, rtol=1e-5)
    with pytest.raises(ValueError, match=r"leak \(2,\) must be one number per task"):
        update([1.0, 0.0])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_graddrop_does_not_drop_what_is_not_finite(value):
    tx = optim.graddrop(KEY)
    gradients = np.float32([[1.0, value], [-2.0, 1.0], [1.0, 1.0]])
    updates, _ = tx.update(gradients, tx.init(None))
    assert np.isfinite(updates).tolist() == [True, False]


# The mean, a network of minima and maxima, and a loop of them.
@pytest.mark.parametrize("tasks", [2, 5, 20])
def test_the_trimmed_mean_is_that_of_sorted_values(tasks):
    trim = (tasks - 1) // 3
    update = jax.jit(optim.trimmed_mean(trim).update)
    for seed in range(20):
        matrix = np.random.default_rng(seed).normal(size=(tasks, 7)).astype(np.float32)
        for active in (np.ones(tasks, bool), np.arange(tasks) % 2 == 0):
            own = np.sort(matrix[active], axis=0)
            # No more than leaves one or two.
            cut = min(trim, (len(own) - 1) // 2)
            expected = own[cut : len(own) - cut].mean(0)
            found, _ = update(matrix, (), active=active)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
            assert (own[0] <= found).all()
            assert (found <= own[-1]).all()
    matrix[0, 0] = np.nan
    found, _ = update(matrix, (), active=active)
    assert np.isnan(found[0])
    assert np.isfinite(found[1:]).all()


def test_db_mtl_is_the_algorithm_of_the_paper():
    update = jax.jit(optim.db_mtl(TASKS, 0.9, 0.5).update)
    gradients = stacked([random_gradients(i) for i in range(20)])
    losses = np.random.default_rng(0).uniform(0.01, 10, (20, TASKS)).astype(np.float32)
    state = optim.db_mtl(TASKS).init(random_params())
    average = 0
    for t in range(20):
        own = jax.tree.map(lambda leaf, t=t: leaf[t], gradients)
        updates, state = update(own, state, task_losses=losses[t])
        beta = 0.9 / np.sqrt(t + 1)
        of_logs = as_matrix(own) / losses[t][:, None]
        average = beta * average + (1 - beta) * of_logs
        norms = np.linalg.norm(average, axis=1, keepdims=True)
        expected = (norms.max() / norms * average).sum(0)
        np.testing.assert_allclose(as_vector(updates), expected, rtol=1e-3, atol=1e-3)


def test_db_mtl_does_not_hide_a_negative_loss():
    gradients = random_gradients(0)
    tx = optim.db_mtl(TASKS)
    state = tx.init(random_params())
    updates, _ = tx.update(gradients, state, task_losses=np.float32([1, -1, 1]))
    assert np.isnan(as_vector(updates)).all()
    with pytest.raises(ValueError, match="task_losses"):
        tx.update(gradients, state)
    with pytest.raises(ValueError, match=r"task_losses \(2,\) must be one number per"):
        tx.update(gradients, state, task_losses=np.ones(2))


def test_a_weight_of_excess_mtl_comes_back():
    tx = optim.excess_mtl(2, robust_step_size=200.0, n_warmup_steps=0)
    state, weights = tx.init(jnp.zeros(1)), []
    for gradients in ([[4.0], [1.0]], [[0.0], [4.0]], [[0.0], [4.0]]):
        found, state = tx.weights(np.float32(gradients), state)
        weights.append(np.array(found))
    np.testing.assert_allclose(weights, [[1, 0], [0, 1], [0, 1]], atol=1e-6)


def test_pcd_gives_each_other_task_its_share():
    tau, norms = 0.3, []
    update = jax.jit(optim.pcd(TASKS, tau, 0.9, 0.0).update)
    state = optim.pcd(TASKS).init(random_params())
    for seed in range(50):
        gradients = random_gradients(seed)
        matrix, directions = as_matrix(gradients), units(gradients)
        norms.append(np.linalg.norm(matrix, axis=1))
        updates, state = update(gradients, state)
        ages = 0.9 ** np.arange(len(norms))[::-1, None]
        lengths = norms[-1] / np.sqrt((ages * np.square(norms)).sum(0) / ages.sum())
        found = as_vector(updates)
        np.testing.assert_allclose(np.linalg.norm(found), norms[-1][0], rtol=1e-4)
        # d is n_1 and what is needed of the others: its own length shows along what
        # is orthogonal to them.
        rest = np.linalg.qr(directions[1:].T)[0]
        aside = [v - rest @ (rest.T @ v) for v in (lengths[0] * directions[0], found)]
        d = found * (aside[0] @ aside[0]) / (aside[0] @ aside[1])
        given_to = directions[1:] @ d
        assert (given_to > tau * lengths[1:] - 1e-3).all()
        is_enough = directions[1:] @ directions[0] * lengths[0] >= tau * lengths[1:]
        if is_enough.all():
            np.testing.assert_allclose(found, matrix[0], rtol=1e-3, atol=1e-4)


def test_pcd_where_conditions_contradict_each_other():
    """Two opposite gradients cannot both make progress; then the first stands alone."""
    gradients = np.float32([[1, 2], [3, 0], [-3, 0]])
    tx = optim.pcd(3)
    update = jax.jit(lambda gradients: tx.update(gradients, tx.init(None))[0])
    np.testing.assert_allclose(update(gradients), gradients[0], rtol=1e-6)
    # If one of them is zero, the other one's progress counts: the first has enough.
    gradients[2] = 0
    np.testing.assert_allclose(update(gradients), gradients[0], rtol=1e-5)
    gradients[1] *= -1
    assert update(gradients) @ gradients[1] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.gradvac(2, KEY, 1.5), "beta must lie between 0 and 1, got 1.5"),
        (lambda: optim.cr_mogm(optim.imtl_g(), 2, -1.0), "alpha must lie between"),
        (lambda: optim.cr_mogm(optim.imtl_g(), 2, 0.5, [1.0]), r"initial_weights \(1,"),
        (lambda: optim.cr_mogm(optim.trimmed_mean(0), 2), "smooths the weights of"),
        (lambda: optim.aligned_mtl(scale_mode="max"), "min, median or rmse, got 'max'"),
        (lambda: optim.aligned_mtl([1.0, -1.0]), "must have no negative"),
        (lambda: optim.conflict_free(np.ones((2, 2))), r"shape \(2, 2\), it must be"),
        (lambda: optim.krum(-1), "n_byzantine must be at least 0, got -1"),
        (lambda: optim.krum(1, 0), "n_selected must be at least 1, got 0"),
        (lambda: optim.trimmed_mean(-1), "trim_number must be at least 0, got -1"),
        (lambda: optim.graddrop(KEY, leak=[2.0]), "leak must lie between 0 and 1"),
        (lambda: optim.excess_mtl(2, -1.0), "robust_step_size must be at least 0"),
        (lambda: optim.excess_mtl(2, 1.0, -1), "n_warmup_steps must be at least 0"),
        (lambda: optim.db_mtl(2, 2.0), "beta must lie between"),
        (lambda: optim.db_mtl(2, 0.5, -1.0), "beta_sigma must be at least 0"),
        (lambda: optim.db_mtl(2, 1.0), "beta must be less than 1 where beta_sigma is"),
        (lambda: optim.pcd(2, 1.5), "tau must lie between"),
        (lambda: optim.pcd(3, [0.5]), r"\(1,\) must be one number per task, \(2,\)"),
        (
            lambda: optim.pcd(2, 0.5, 1.0),
            "beta must be at least 0 and less than 1, got 1",
        ),
        (lambda: optim.pcd(2, 0.5, 0.9, -1.0), "eps must be at least 0"),
    ],
)
def test_wrong_parameters_are_named_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.krum(1), r"krum\(1, 1\) needs at least 4 tasks, .* of 3"),
        (lambda: optim.krum(0, 4), "needs at least 4 tasks"),
        (
            lambda: optim.trimmed_mean(2),
            "needs at least 5 tasks, the gradients are of 3",
        ),
        (
            lambda: optim.aligned_mtl([1.0, 2.0]),
            r"pref_vector \(2,\) must be one number",
        ),
        (lambda: optim.conflict_free([1.0, 2.0]), r"pref_vector \(2,\) must be one"),
        *(
            (make, "the gradients are of 3 tasks, the optimizer is for 2")
            for make in (
                lambda: optim.gradvac(2, KEY),
                lambda: optim.cr_mogm(optim.imtl_g(), 2),
                lambda: optim.excess_mtl(2),
                lambda: optim.db_mtl(2),
                lambda: optim.pcd(2),
            )
        ),
    ],
)
def test_a_wrong_number_of_tasks_is_named_when_it_is_traced(make, message):
    tx = make()
    state = tx.init(random_params())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tx.update, random_gradients(0), state)
