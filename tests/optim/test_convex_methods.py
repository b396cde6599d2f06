"""Properties of the methods that solve a convex problem, and TorchJD's answers.

One compiled function serves all 4 x 6 matrices of a method.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import nnls

from mtl_jax import optim

N, SIZE, BATCH = 4, 6, 200
ALL = np.ones(N, bool)
METHODS = {
    "mgda": lambda n: optim.mgda(),
    "cagrad": lambda n: optim.cagrad(0.4),
    "upgrad": lambda n: optim.upgrad(),
    "dualproj": lambda n: optim.dualproj(),
    "nash_mtl": lambda n: optim.nash_mtl(n, max_norm=0.0),
    "fairgrad": lambda n: optim.fairgrad(2.0),
}
every_method = pytest.mark.parametrize("name", METHODS)


@functools.cache
def compiled(name, n):
    tx = METHODS[name](n)

    def update(gradients, active):
        state = tx.init(jnp.zeros(SIZE, gradients.dtype))
        return tx.update(gradients, state, active=active)[0]

    return jax.jit(jax.vmap(update, (0, None)))


def updates_of(name, gradients, active=ALL):
    """In 64 bits."""
    with jax.enable_x64(True):
        gradients = np.asarray(gradients, np.float64)
        update = compiled(name, gradients.shape[1])(gradients, np.asarray(active))
    assert update.dtype == np.float64
    return np.asarray(update)


@functools.cache
def gradients(n=N):
    """Some that conflict much and some that hardly do, of lengths 0.2 to 3."""
    rng = np.random.default_rng(n)
    rows = rng.normal(size=(BATCH, n, SIZE))
    rows += rng.uniform(0, 2, (BATCH, 1, 1)) * rng.normal(size=(BATCH, 1, SIZE))
    return rows * np.exp(rng.uniform(-1.5, 1, (BATCH, n, 1)))


def weights_of(rows, updates):
    """The w of J'w = d, for gradients that are linearly independent."""
    return np.stack(
        [np.linalg.lstsq(j.T, d)[0] for j, d in zip(rows, updates, strict=True)]
    )


def gains_of(rows, updates):
    """Inner products of the gradients with the updates."""
    return np.einsum("bnd,bd->bn", rows, updates)


def lengths(rows):
    return np.linalg.norm(rows, axis=-1)


def test_mgda_is_the_shortest_convex_combination():
    updates = updates_of("mgda", gradients())
    weights = weights_of(gradients(), updates)
    assert weights.min() > -1e-9
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-9)
    gains, square = gains_of(gradients(), updates), lengths(updates) ** 2
    # A gradient whose gain is larger has no weight.
    assert (gains - square[:, None]).min() > -1e-9
    assert np.abs(weights * (gains - square[:, None])).max() < 1e-9
    # More than one face of the simplex has the solution.
    assert len({tuple(w > 1e-6) for w in weights}) > 8


@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj", "nash_mtl", "fairgrad"])
def test_no_task_is_in_conflict_with_the_update(name):
    updates = updates_of(name, gradients())
    cosines = gains_of(gradients(), updates) / lengths(gradients())
    assert cosines.min() > -1e-9
    mean = gradients().mean(1)
    assert (gains_of(gradients(), mean) < 0).any(1).sum() > BATCH / 10


def nearest_in_dual_cone(rows, vector):
    return vector + rows.T @ nnls(rows.T, -vector)[0]


def test_projections_onto_the_dual_cone_by_least_squares():
    for rows, projected, mean in zip(
        gradients(),
        updates_of("dualproj", gradients()),
        updates_of("upgrad", gradients()),
        strict=True,
    ):
        expected = nearest_in_dual_cone(rows, rows.mean(0))
        np.testing.assert_allclose(projected, expected, atol=1e-8)
        expected = np.mean([nearest_in_dual_cone(rows, g) for g in rows], axis=0)
        np.testing.assert_allclose(mean, expected, atol=1e-8)


def test_upgrad_is_linear_in_the_length_of_each_gradient():
    factors = np.random.default_rng(0).choice([1e-6, 0.1, 1, 5, 1e6], (2, BATCH, N, 1))
    one, other, both = (
        updates_of("upgrad", f * gradients()) for f in (*factors, factors.sum(0))
    )
    size = lengths(one + other)[:, None]
    np.testing.assert_allclose(both / size, (one + other) / size, atol=1e-8)


def test_the_bargain_gives_each_task_the_same_part():
    updates = updates_of("nash_mtl", gradients())
    weights = weights_of(gradients(), updates)
    parts = weights * gains_of(gradients(), updates)
    np.testing.assert_allclose(parts, 1, rtol=1e-7)


def test_fairgrad_solves_its_equation():
    updates = updates_of("fairgrad", gradients())
    weights = weights_of(gradients(), updates)
    gains = gains_of(gradients(), updates)
    np.testing.assert_allclose(gains, weights**-0.5, rtol=1e-7)


@every_method
def test_tasks_under_other_numbers_are_the_same_tasks(name):
    rows = gradients()
    np.testing.assert_allclose(
        updates_of(name, rows[:, [2, 0, 3, 1]]), updates_of(name, rows), atol=1e-7
    )


@every_method
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scaled_gradients(name, factor):
    # FairGrad's with alpha = 2.
    power = {"nash_mtl": 0, "fairgrad": -1 / 3}.get(name, 1)
    np.testing.assert_allclose(
        updates_of(name, factor * gradients()) / factor**power,
        updates_of(name, gradients()),
        atol=1e-7,
    )


@every_method
def test_where_zero_is_a_convex_combination_the_update_is_zero(name):
    rows = gradients().copy()
    shares = np.random.default_rng(0).uniform(0.2, 1, (BATCH, N - 1, 1))
    rows[:, -1] = -(shares * rows[:, :-1]).sum(1)
    updates = updates_of(name, rows)
    if name == "cagrad":  # With c < 1 it goes on to the minimum of the mean.
        mean = rows.mean(1)
        assert (lengths(updates - mean) < 0.41 * lengths(mean)).all()
    else:
        # In 64 bits; the weights of the last two are limited by roundings.
        tolerance = {"nash_mtl": 1e-5, "fairgrad": 1e-3}.get(name, 1e-6)
        assert lengths(updates).max() < tolerance


@every_method
@pytest.mark.parametrize("active", [(1, 0, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0)], ids=str)
def test_absent_tasks_do_not_exist(name, active):
    active = np.array(active, bool)
    rows = np.where(active[:, None], gradients(), np.nan)
    updates = updates_of(name, rows, active)
    if active.sum() == 2:
        smaller = updates_of(name, rows[:, active], ALL[:2])
        np.testing.assert_allclose(updates, smaller, rtol=1e-9, atol=1e-9)
    elif active.sum() == 1:
        (row,) = np.moveaxis(rows[:, active], 1, 0)
        norm = lengths(row)[:, None]
        # Of one gradient g: by c of it longer, or the length of Nash and of FairGrad.
        expected = {
            "cagrad": 1.4 * row,
            "nash_mtl": row / norm,
            "fairgrad": row / norm ** (4 / 3),
        }
        np.testing.assert_allclose(updates, expected.get(name, row), rtol=1e-6)
    else:
        assert not updates.any()


@pytest.mark.parametrize("name", ["mgda", "nash_mtl"])
def test_a_single_task(name):
    rows = gradients()[:, :1]
    expected = rows[:, 0] / (lengths(rows) if name == "nash_mtl" else 1)
    np.testing.assert_allclose(updates_of(name, rows, ALL[:1]), expected, rtol=1e-6)


@every_method
def test_a_gradient_of_zero(name):
    rows = gradients().copy()
    rows[:, [1, 3]] = 0
    updates = updates_of(name, rows)
    smaller = updates_of(name, rows[:, [0, 2]], ALL[:2])
    if name == "mgda":
        assert not updates.any()
    else:
        # Those of the mean count it.
        factor = 1 if name in ("nash_mtl", "fairgrad") else 0.5
        np.testing.assert_allclose(updates, factor * smaller, rtol=1e-7, atol=1e-9)


@every_method
def test_in_32_bits_at_scales_from_1e_15_to_1e15(name):
    # For alpha = 2 the equation is not that of unit gradients.
    exponents = (-3, 0, 3) if name == "fairgrad" else (-15, 0, 15)
    scales = 10.0 ** np.random.default_rng(0).choice(exponents, (BATCH, N, 1))
    rows = gradients()
    rows = rows / lengths(rows)[..., None]
    updates = np.float64(compiled(name, N)(np.float32(scales * rows), ALL))
    assert np.isfinite(updates).all()
    size = lengths(updates)[:, None]
    assert (size > 0).all()
    if name != "cagrad":
        # Along the directions of the gradients.
        assert (gains_of(rows, updates) > -1e-5 * size).all()


@pytest.mark.parametrize("name", ["upgrad", "nash_mtl"])
def test_in_16_bits(name):
    rows = jnp.asarray(gradients(), jnp.bfloat16)
    updates = compiled(name, N)(rows, ALL)
    assert updates.dtype == jnp.bfloat16
    expected = updates_of(name, np.float64(rows))
    # Near the boundary of the hull the weights are large.
    close = np.isclose(np.float64(updates), expected, rtol=0.03, atol=0.03).all(1)
    assert close.mean() > 0.95


@pytest.mark.parametrize(
    "make", [optim.upgrad, optim.dualproj], ids=lambda f: f.__name__
)
def test_preferences(make):
    rows = gradients()[:, :2]
    preferences = np.array([3.0, 0.5])
    tx = make(preferences)
    update = jax.jit(jax.vmap(lambda g: tx.update(g, optax.EmptyState())[0]))
    with jax.enable_x64(True):
        updates = np.asarray(update(rows))
    for j, actual in zip(rows, updates, strict=True):
        if make is optim.dualproj:
            expected = nearest_in_dual_cone(j, preferences @ j)
        else:
            expected = preferences @ [nearest_in_dual_cone(j, g) for g in j]
        np.testing.assert_allclose(actual, expected, atol=1e-8)


def test_a_bargain_serves_for_some_steps():
    tx = optim.nash_mtl(2, max_norm=1.0, update_weights_every=3)
    update = jax.jit(tx.update)
    state = tx.init(jnp.zeros(SIZE))
    bargains = []
    for rows in np.float32(gradients()[:7, :2]):
        updates, state = update(rows, state)
        bargains.append(np.asarray(state.weights))
        unlimited = state.weights @ rows
        expected = unlimited / max(1, np.linalg.norm(unlimited))
        np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-6)
    changes = [np.abs(a - b).max() > 0.01 for a, b in itertools.pairwise(bargains)]
    assert changes == [False, False, True, False, False, True]
    # A task that is absent from a bargain keeps its weight.
    state = state._replace(count=jnp.int32(0))
    after = update(
        np.ones((2, SIZE), np.float32), state, active=np.array([True, False])
    )
    assert after[1].weights[1] == state.weights[1]


def nearest_in_simplex(y):
    """By bisection for the threshold."""
    low, high = y.min() - 1, y.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if np.maximum(y - middle, 0).sum() > 1 else (low, middle)
        )
    return np.maximum(y - low, 0)


def test_moco_step_by_step():
    tx = optim.moco(N, beta=lambda count: 0.5 / (count + 1), gamma=0.5, rho=0.1)
    with jax.enable_x64(True):
        update = jax.jit(tx.update)
        state = tx.init(jnp.zeros(SIZE))
        tracked, weights = np.zeros((N, SIZE)), np.full(N, 1 / N)
        for step, rows in enumerate(gradients()[:20]):
            updates, state = update(rows, state)
            tracked = tracked + 0.5 / (step + 1) * (rows - tracked)
            slope = tracked @ tracked.T @ weights + 0.1 * weights
            weights = nearest_in_simplex(weights - 0.5 * slope)
            np.testing.assert_allclose(updates, weights @ tracked, atol=1e-6)
        np.testing.assert_allclose(state.weights, weights, atol=1e-6)
        assert (weights == 0).any()
        # An absent task: what was tracked of it and its weight stay.
        active = np.array([True, False, True, True])
        before = state
        rows = np.where(active[:, None], gradients()[20], np.nan)
        updates, state = update(rows, before, active=active)
    np.testing.assert_array_equal(state.tracked[1], before.tracked[1])
    assert state.weights[1] == before.weights[1]
    np.testing.assert_allclose(state.weights.sum(), 1, atol=1e-6)
    assert np.isfinite(updates).all()


SAMPLED = {
    "sdmgrad": lambda n: optim.sdmgrad(n, lr=0.3, lambda_=0.4),
    "modo": lambda n: optim.modo(n, gamma=0.05),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_absent_tasks_do_not_exist_for_methods_with_samples(name):
    active = np.array([True, False, True, False])
    larger, smaller = (SAMPLED[name](n) for n in (N, 2))
    states = larger.init(None), smaller.init(None)
    update, update_smaller = jax.jit(larger.update), jax.jit(smaller.update)
    for start in range(0, 30, 3):
        samples = np.float32(gradients()[start : start + 3])
        masked = np.where(active[:, None], samples, np.nan)
        updates, state = update(
            masked[2], states[0], active=active, samples=(masked[0], masked[1])
        )
        expected, state_of_two = update_smaller(
            samples[2][active],
            states[1],
            samples=(samples[0][active], samples[1][active]),
        )
        states = state, state_of_two
        np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.weights[~active], 1 / N)
    np.testing.assert_allclose(state.weights.sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_are_asked_for(name):
    tx = SAMPLED[name](2)
    rows = jnp.ones((2, SIZE))
    with pytest.raises(ValueError, match="pass update"):
        tx.update(rows, tx.init(None))
    with pytest.raises(ValueError, match="of 3 tasks, the optimizer is for 2"):
        tx.update(rows, tx.init(None), samples=(jnp.ones((3, SIZE)),) * 2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: optim.cagrad(-0.1), "c is -0.1, it must not be negative"),
        (lambda: optim.fairgrad(0), "alpha is 0, it must be positive"),
        (lambda: optim.nash_mtl(0), "num_tasks is 0"),
        (lambda: optim.nash_mtl(2, -1.0), "max_norm is -1.0"),
        (
            lambda: optim.nash_mtl(2, update_weights_every=0),
            "update_weights_every is 0",
        ),
        (lambda: optim.upgrad([[1.0]]), r"pref_vector has shape \(1, 1\)"),
        (lambda: optim.upgrad([1.0, -1.0]), "pref_vector is .* no negative"),
        (lambda: optim.dualproj([0.0, 0.0]), "and a positive number"),
        (lambda: optim.modo(2, gamma=0.0), "gamma is 0.0"),
        (lambda: optim.modo(2, rho=-1.0), "rho is -1.0"),
        (lambda: optim.sdmgrad(2, lr=0.0), "lr is 0.0"),
        (lambda: optim.sdmgrad(2, momentum=1.0), "momentum is 1.0"),
        (lambda: optim.sdmgrad(2, n_iter=0), "n_iter is 0"),
        (lambda: optim.sdmgrad(2, lambda_=-0.1), "lambda_ is -0.1"),
        (lambda: optim.moco(2, beta=1.5), "beta is 1.5"),
        (lambda: optim.moco(2, gamma=0.0), "gamma is 0.0"),
        (lambda: optim.moco(2, rho=-1.0), "rho is -1.0"),
    ],
)
def test_a_wrong_argument_is_named_when_the_method_is_made(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_another_number_of_tasks_is_named():
    for tx in (optim.nash_mtl(3), optim.moco(3)):
        with pytest.raises(ValueError, match="of 2 tasks, the optimizer is for 3"):
            tx.update(jnp.ones((2, SIZE)), tx.init(jnp.zeros(SIZE)))
    with pytest.raises(ValueError, match=r"pref_vector \(3,\) must be one number"):
        optim.upgrad([1, 1, 1]).update(jnp.ones((2, SIZE)), optax.EmptyState())


def test_a_radius_on_a_schedule():
    tx = optax.inject_hyperparams(optim.cagrad)(c=lambda count: 0.4 * count)
    rows = np.float32(gradients()[0])
    state = tx.init(jnp.zeros(SIZE))
    update = jax.jit(tx.update)
    mean, state = update(rows, state)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    updates, _ = update(rows, state)
    expected = updates_of("cagrad", gradients())[0]
    np.testing.assert_allclose(updates, expected, rtol=1e-3, atol=1e-4)
