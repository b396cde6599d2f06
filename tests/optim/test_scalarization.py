"""Weights of the losses: TorchJD's scalarizers, and what each method is to do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import optim

N, STEPS, EPOCH = 4, 200, 7
PREFERENCES = (0.1, 0.2, 0.3, 0.4)
REFERENCE = (0.05, 0.0, 0.1, 0.02)

# Given the numbers of the tasks, which choose their part of the vectors.
ALL = tuple(range(N))
STATELESS = {
    "geometric_mean": lambda tasks: optim.geometric_mean(),
    "stch": lambda tasks: optim.stch(0.1),
    "stch of preferences": lambda tasks: optim.stch(
        0.05, part(PREFERENCES, tasks), part(REFERENCE, tasks)
    ),
    "cosmos": lambda tasks: optim.cosmos(2.0, part(PREFERENCES, tasks)),
    "pbi": lambda tasks: optim.pbi(5.0, part(PREFERENCES, tasks)),
    "pbi of a reference": lambda tasks: optim.pbi(
        0.5, part(PREFERENCES, tasks), part(REFERENCE, tasks)
    ),
}
STATEFUL = {
    "uncertainty_weighting": lambda tasks: optim.uncertainty_weighting(
        len(tasks), optax.adam(0.05)
    ),
    "imtl_l": lambda tasks: optim.imtl_l(len(tasks), optax.sgd(0.05, momentum=0.9)),
    "dwa": lambda tasks: optim.dwa(len(tasks), steps_per_epoch=EPOCH),
    "famo": lambda tasks: optim.famo(len(tasks)),
    "famo above bounds": lambda tasks: optim.famo(
        len(tasks), part(REFERENCE, tasks), 0.1, 0.5
    ),
}
DETERMINISTIC = {**STATELESS, **STATEFUL}
EVERY = {
    **DETERMINISTIC,
    "random_loss_weighting": lambda tasks: optim.random_loss_weighting(
        jax.random.key(0)
    ),
}


def part(vector, tasks):
    return np.array(vector)[list(tasks)]


def random_losses(seed, low=0.2, high=3.0):
    """[STEPS, N]; smooth and noisy."""
    return np.random.default_rng(seed).uniform(low, high, (STEPS, N))


@functools.cache
def compiled(name, tasks=ALL):
    """Weights [STEPS, N] and last state, from losses and `active`, both [STEPS, N]."""
    weighting = EVERY[name](tasks)

    def step(state, inputs):
        weights, state = weighting.update(inputs[0], None, state, inputs[1])
        return state, weights

    @jax.jit
    def run(losses, active):
        state, weights = jax.lax.scan(step, weighting.init(None), (losses, active))
        return weights, state

    return lambda losses, active=None: run(
        losses, np.ones(losses.shape, bool) if active is None else active
    )


def once(weighting, losses):
    """Weights of the first step."""
    step = jax.jit(lambda losses: weighting.update(losses, None, weighting.init(None)))
    return np.asarray(step(losses)[0])


@functools.cache
def torchjd_scalarizers():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = pytest.importorskip(
        "torchjd.scalarization", reason="TorchJD, a second opinion, is not installed"
    )
    c, z = (torch.tensor(x, dtype=torch.float64) for x in (PREFERENCES, REFERENCE))
    return torch, {
        "geometric_mean": theirs.GeometricMean(),
        "stch": theirs.STCH(0.1),
        "stch of preferences": theirs.STCH(0.05, c, z),
        "cosmos": theirs.COSMOS(2.0, c),
        "pbi": theirs.PBI(5.0, c),
        "pbi of a reference": theirs.PBI(0.5, c, z),
        "uncertainty_weighting": theirs.UW(N).double(),
        "imtl_l": theirs.IMTLL(N).double(),
        "dwa": theirs.DWA(),
        "famo": theirs.FAMO(N).double(),
        "famo above bounds": theirs.FAMO(N, z, 0.1, 0.5).double(),
    }


def torchjd_weights(name, losses):
    """Derivatives of TorchJD's scalar; it learns as its documentation shows."""
    torch, scalarizers = torchjd_scalarizers()
    scalarizer = scalarizers[name]
    learned = list(scalarizer.parameters())
    optimizer = None
    if name == "uncertainty_weighting":
        optimizer = torch.optim.Adam(learned, lr=0.05)
    elif name == "imtl_l":
        optimizer = torch.optim.SGD(learned, lr=0.05, momentum=0.9)
    rows = []
    for t, values in enumerate(losses):
        values = torch.tensor(values, requires_grad=True)
        if name.startswith("famo") and t:
            scalarizer.update(values.detach())
        if optimizer:
            optimizer.zero_grad()
        scalarizer(values).backward()
        if optimizer:
            optimizer.step()
        if name == "dwa" and (t + 1) % EPOCH == 0:
            scalarizer.step()
        rows.append(values.grad.numpy())
    return np.array(rows)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_weights_are_those_of_torchjd(name):
    """In float64, over 200 random vectors of losses, one after the other."""
    losses = random_losses(0)
    with jax.enable_x64(True):
        weights, _ = compiled(name)(losses)
        weights = np.array(weights)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(
        weights, torchjd_weights(name, losses), rtol=1e-9, atol=1e-12
    )
    # What learns has learned, and what looks at the losses differs with them.
    assert np.ptp(weights, axis=0).min() > 1e-3


@pytest.mark.parametrize(
    "name", ["geometric_mean", "stch", "dwa", "famo", "imtl_l", "uncertainty_weighting"]
)
def test_tasks_under_other_numbers_are_the_same_tasks(name):
    """But for preferences, which have the tasks' numbers."""
    losses = random_losses(7).astype(np.float32)
    weights, _ = compiled(name)(losses)
    for order in ([3, 2, 1, 0], [1, 2, 3, 0]):
        again, _ = compiled(name)(losses[:, order])
        np.testing.assert_allclose(weights[:, order], again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_absent_tasks_are_not_read_and_the_others_are_as_if_alone(name):
    chosen = (0, 2, 3)
    losses = random_losses(1).astype(np.float32)
    active = np.isin(ALL, chosen) & np.ones(losses.shape, bool)
    weights, state = compiled(name)(np.where(active, losses, np.nan), active)
    np.testing.assert_array_equal(weights[:, 1], 0)
    alone, _ = compiled(name, chosen)(losses[:, chosen])
    np.testing.assert_allclose(weights[:, chosen], alone, rtol=1e-5, atol=1e-6)
    fresh = EVERY[name](ALL).init(None)
    for leaf, start in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True):
        if np.ndim(start):
            # The state of a task that was never there is as it was.
            np.testing.assert_array_equal(leaf[..., 1], start[..., 1])


@pytest.mark.parametrize("name", EVERY)
def test_whatever_tasks_are_there_the_weights_are_finite(name):
    """Losses of 0 and of all scales, and steps without any task."""
    rng = np.random.default_rng(2)
    scales = 10.0 ** rng.choice([-15, 0, 15], (STEPS, N))
    losses = np.where(rng.random((STEPS, N)) < 0.1, 0, scales * random_losses(2))
    active = rng.random((STEPS, N)) < rng.choice([0.0, 0.6, 1.0], (STEPS, 1))
    if "above bounds" in name:
        losses += part(REFERENCE, ALL)
    weights, state = compiled(name)(losses.astype(np.float32), active)
    assert not np.asarray(weights)[~active].any()
    for leaf in jax.tree.leaves((weights, state)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", EVERY)
def test_one_task_and_two_with_losses_of_16_bits(name):
    assert once(EVERY[name]((0,)), np.float32([0.5])) > 0
    # These losses are numbers of both types.
    wide = np.float32([0.5, 1.25])
    weights = once(EVERY[name]((0, 1)), wide)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(
        weights, once(EVERY[name]((0, 1)), wide.astype(jnp.bfloat16))
    )


def test_geometric_mean_makes_the_weighted_losses_equal():
    losses = random_losses(3).astype(np.float32)
    weighted = losses * np.asarray(compiled("geometric_mean")(losses)[0])
    mean = np.exp(np.log(losses).mean(1, keepdims=True))
    np.testing.assert_allclose(weighted, mean / N * np.ones(N), rtol=1e-5)


def test_the_optimum_of_constant_losses_makes_all_weighted_losses_equal():
    losses = np.tile(np.float32([0.2, 1.0, 3.0, 0.5]), (STEPS, 1))
    for name, goal in [("uncertainty_weighting", 0.5), ("imtl_l", 1.0)]:
        weights, _ = compiled(name)(losses)
        np.testing.assert_allclose(weights[-1] * losses[-1], goal, rtol=2e-2)


def test_imtl_l_is_twice_uncertainty_weighting():
    """Of the negative parameter; so its steps are those of twice the rate."""
    losses = jnp.array([0.2, 1.0, 3.0])
    state = jnp.array([0.1, -0.5, 0.7]), optax.EmptyState()
    half, ours = jax.jit(
        lambda s: optim.uncertainty_weighting(3, optax.scale(-0.2)).update(
            losses, None, s
        )
    )(optim.UncertaintyWeightingState(-state[0], state[1]))
    whole, theirs = jax.jit(
        lambda s: optim.imtl_l(3, optax.scale(-0.1)).update(losses, None, s)
    )(optim.IMTLLState(*state))
    np.testing.assert_allclose(2 * half, whole, rtol=1e-6)
    np.testing.assert_allclose(-ours.log_variances, theirs.log_scales, rtol=1e-6)


def test_famo_favours_the_task_that_falls_most_slowly():
    rates = np.array([0.90, 0.95, 0.99, 0.97])
    losses = np.float32([1, 5, 0.3, 2]) * rates ** np.arange(STEPS)[:, None]
    weights, state = compiled("famo")(losses.astype(np.float32))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.argsort(state.logits), np.argsort(rates))


def test_dwa_favours_the_task_whose_loss_falls_least():
    losses = np.repeat(0.9 ** (np.arange(30)[:, None] * np.arange(N)), EPOCH, 0)
    weights, _ = compiled("dwa")(losses[:STEPS].astype(np.float32))
    weights = np.asarray(weights)
    np.testing.assert_allclose(weights.sum(1), N, rtol=1e-5)
    np.testing.assert_allclose(weights[: 2 * EPOCH], 1, rtol=1e-6)
    np.testing.assert_allclose(np.ptp(weights[2 * EPOCH :], 0), 0, atol=1e-3)
    ratios = np.exp(0.9 ** np.arange(N) / 2)
    np.testing.assert_allclose(weights[-1], N * ratios / ratios.sum(), rtol=1e-4)


def test_dwa_does_not_count_an_epoch_that_a_task_was_not_in():
    """Epochs of one step; the second task is absent from the second one."""
    weighting = optim.dwa(2, temperature=1.0, steps_per_epoch=1)
    state, update = weighting.init(None), jax.jit(weighting.update, static_argnums=1)
    for losses, active in [
        ((4.0, 4.0), (True, True)),
        ((2.0, 9.0), (True, False)),
        ((2.0, 1.0), (True, True)),
    ]:
        _, state = update(np.float32(losses), None, state, np.array(active))
    weights, _ = update(np.ones(2, np.float32), None, state, np.ones(2, bool))
    expected = np.exp([2 / 2, 1 / 4])
    np.testing.assert_allclose(weights, 2 * expected / expected.sum(), rtol=1e-5)


def test_stch_is_between_the_mean_and_the_largest_loss():
    losses = jnp.array([0.3, 0.2, 0.5])
    for mu, expected in [(1e-3, [0, 0, 1 / 3]), (1e6, [1 / 9, 1 / 9, 1 / 9])]:
        weights = once(optim.stch(mu), losses)
        np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_without_a_penalty_the_weights_are_the_preferences():
    losses = jnp.array(random_losses(5)[0], jnp.float32)
    weights = once(optim.cosmos(0.0, PREFERENCES), losses)
    np.testing.assert_allclose(weights, PREFERENCES, rtol=1e-6)
    weights = once(optim.pbi(0.0, PREFERENCES), losses)
    np.testing.assert_allclose(
        weights, PREFERENCES / np.linalg.norm(PREFERENCES), rtol=1e-6
    )


def test_on_the_preferred_direction_nothing_is_to_pay():
    losses = 3 * np.array(PREFERENCES)
    direction = PREFERENCES / np.linalg.norm(PREFERENCES)
    with jax.enable_x64(True):
        along = once(optim.pbi(5.0, PREFERENCES), losses)
        weighted = once(optim.cosmos(8.0, PREFERENCES), losses)
    np.testing.assert_allclose(along, direction, rtol=1e-6)
    np.testing.assert_allclose(weighted, PREFERENCES, rtol=1e-6)


def test_random_weights_are_softmaxes_of_normal_numbers():
    weights, state = compiled("random_loss_weighting")(np.ones((STEPS, N), np.float32))
    assert int(state) == STEPS
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    # Undone, up to a number for each row: normal, and others at every step.
    logs = np.log(weights)
    draws = logs - logs.mean(1, keepdims=True)
    assert len(np.unique(draws[:, 0])) == STEPS
    assert abs(draws.mean()) < 1e-6
    assert 0.85 < draws.std() / np.sqrt(1 - 1 / N) < 1.15
    once, _ = compiled("random_loss_weighting")(np.ones((STEPS, N), np.float32))
    np.testing.assert_array_equal(once, weights)


@pytest.mark.parametrize("name", ["geometric_mean", "famo"])
def test_a_negative_loss_makes_the_weights_nan(name):
    losses = random_losses(6).astype(np.float32)
    losses[3, 1] = -1
    weights = np.asarray(compiled(name)(losses)[0])
    assert np.isnan(weights[3]).all()
    assert np.isfinite(weights[:3]).all()


VECTORS = {
    "weights (3,) must be one number per task, (2,)": [
        lambda: optim.stch(0.1, [1, 2, 3]),
        lambda: optim.cosmos(0.1, [1, 2, 3]),
        lambda: optim.pbi(0.1, [1, 2, 3]),
    ],
    "reference (1,) must be one number per task, (2,)": [
        lambda: optim.stch(0.1, reference=[1.0]),
        lambda: optim.pbi(0.1, [1, 2], [1.0]),
    ],
    "min_losses (3,) must be one number per task, (2,)": [
        lambda: optim.famo(2, np.ones(3))
    ],
    "shape (2,); they must be a vector, one number per task, (3,)": [
        lambda: optim.famo(3),
        lambda: optim.dwa(3, steps_per_epoch=2),
        lambda: optim.imtl_l(3, optax.sgd(0.1)),
        lambda: optim.uncertainty_weighting(3, optax.sgd(0.1)),
    ],
}


@pytest.mark.parametrize("message", VECTORS)
def test_vectors_of_another_length_are_named_when_the_step_is_traced(message):
    for make in VECTORS[message]:
        weighting = make()
        state = jax.eval_shape(weighting.init, None)
        with pytest.raises(ValueError, match=re.escape(message)):
            jax.eval_shape(
                lambda state, w=weighting: w.update(jnp.ones(2), None, state), state
            )


def test_losses_that_are_no_vector_are_named():
    for make in EVERY.values():
        weighting = make(ALL)
        with pytest.raises(ValueError, match=r"losses have shape \(4, 1\)"):
            weighting.update(jnp.ones((N, 1)), None, weighting.init(None))


@pytest.mark.parametrize("preferences", [(0.5, 0.0), (1.0, -1.0)])
def test_preferences_must_be_positive(preferences):
    for make in (optim.stch, optim.cosmos, optim.pbi):
        with pytest.raises(ValueError, match="weights must be positive"):
            make(0.1, preferences)
        # Traced ones are not known, and pass.
        jax.eval_shape(lambda c, make=make: make(0.1, c) and c, jnp.array(preferences))
