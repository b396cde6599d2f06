"""The methods that solve a convex problem beside TorchJD's, in 64 bits.

PyTorch and TorchJD are no dependencies; `.ci/run` installs them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import optim

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
aggregation = pytest.importorskip(
    "torchjd.aggregation", reason="TorchJD, a second opinion, is not installed"
)

BATCH, N, SIZE = 200, 4, 6


def random_gradients(seed=0, batch=BATCH):
    """Some that conflict much and some that hardly do, of lengths 0.3 to 3."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(batch, N, SIZE))
    rows += rng.uniform(0, 2, (batch, 1, 1)) * rng.normal(size=(batch, 1, SIZE))
    return rows * np.exp(rng.uniform(-1, 1, (batch, N, 1)))


def ours(tx, rows):
    with jax.enable_x64(True):
        state = tx.init(jnp.zeros(SIZE))
        return np.asarray(jax.jit(jax.vmap(lambda g: tx.update(g, state)[0]))(rows))


def theirs(aggregator, rows):
    return np.stack([aggregator(torch.tensor(j)).numpy() for j in rows])


@pytest.mark.parametrize("pref_vector", [None, (0.5, 2.0, 0.0, 1.0)], ids=str)
@pytest.mark.parametrize(
    ("make", "name"), [(optim.upgrad, "UPGrad"), (optim.dualproj, "DualProj")]
)
def test_projections_onto_the_dual_cone_are_equal(make, name, pref_vector):
    linalg = pytest.importorskip("torchjd.linalg")
    rows = random_gradients()
    # Their default adds 1e-4 to the diagonal.
    projector = linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    vector = None if pref_vector is None else torch.tensor(pref_vector).double()
    expected = theirs(getattr(aggregation, name)(vector, projector), rows)
    np.testing.assert_allclose(ours(make(pref_vector), rows), expected, atol=1e-6)


def test_cagrad_is_at_least_as_good():
    rows = random_gradients()
    actual = ours(optim.cagrad(0.4), rows)
    expected = theirs(aggregation.CAGrad(c=0.4, norm_eps=0.0), rows)
    # The objective, within the ball; their solver stops at 1e-8 of it.
    worst, theirs_worst = (
        np.einsum("bnd,bd->bn", rows, d).min(1) for d in (actual, expected)
    )
    mean = rows.mean(1)
    distance = np.linalg.norm(actual - mean, axis=1)
    assert (distance < 0.4 * np.linalg.norm(mean, axis=1) * (1 + 1e-9)).all()
    assert (worst > theirs_worst - 1e-6).all()
    np.testing.assert_allclose(worst, theirs_worst, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(actual, expected, rtol=0.05, atol=0.05)


def test_mgda_is_shorter():
    rows = random_gradients(batch=40)
    actual = np.linalg.norm(ours(optim.mgda(), rows), axis=1)
    aggregator = aggregation.MGDA(epsilon=1e-6, max_iters=300)
    expected = np.linalg.norm(theirs(aggregator, rows), axis=1)
    # 300 steps of Frank and Wolfe's are within 2 percent.
    assert (actual < expected + 1e-9).all()
    np.testing.assert_allclose(actual, expected, rtol=0.02, atol=0.02)


def test_fairgrad_is_the_same_where_theirs_solves_the_equation():
    rows = random_gradients()
    weighting = aggregation.FairGrad(alpha=2.0).gramian_weighting
    num_solved = 0
    for j, update in zip(rows, ours(optim.fairgrad(2.0), rows), strict=True):
        gram = j @ j.T
        weights = weighting(torch.tensor(gram)).numpy()
        if np.abs(gram @ weights - weights**-0.5).max() < 1e-8:
            num_solved += 1
            np.testing.assert_allclose(update, weights @ j, atol=1e-6)
    assert num_solved > 0.9 * BATCH


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
def test_the_bargain_is_the_same_where_theirs_is_one():
    rows = random_gradients(batch=12)
    num_solved = 0
    for j, update in zip(
        rows, ours(optim.nash_mtl(N, max_norm=0.0), rows), strict=True
    ):
        # A new one for each, as it starts from the matrix before.
        expected = aggregation.NashMTL(n_tasks=N, max_norm=0.0)(torch.tensor(j)).numpy()
        parts = np.linalg.lstsq(j.T, expected)[0] * (j @ expected)
        if np.abs(parts - 1).max() < 1e-6:
            num_solved += 1
            np.testing.assert_allclose(update, expected, atol=1e-5)
    assert num_solved > 8
    limited = ours(optim.nash_mtl(N), rows)
    np.testing.assert_allclose(np.linalg.norm(limited, axis=1), 1, rtol=1e-9)


@pytest.mark.parametrize(
    ("tx", "weighting"),
    [
        (
            optim.sdmgrad(N, 0.2, 0.6, 20, 0.5, (0.1, 0.2, 0.3, 0.4)),
            lambda: aggregation.SDMGradWeighting(
                0.2, 0.6, 20, 0.5, torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
            ),
        ),
        # At this rate 20 steps of w would magnify roundings beyond comparison.
        (
            optim.sdmgrad(N, n_iter=4),
            lambda: aggregation.SDMGradWeighting(n_iter=4),
        ),
        (optim.modo(N, 0.02, 0.3), lambda: aggregation.MoDoWeighting(0.02, 0.3)),
        (optim.modo(N), lambda: aggregation.MoDoWeighting()),
    ],
    ids=["sdmgrad", "sdmgrad, default rates", "modo", "modo, defaults"],
)
def test_weights_from_samples_are_equal(tx, weighting):
    # SDMGrad's gradients are so long that the 1e-8 is lost that they add to a square.
    scale = 1e4 if isinstance(tx.init(None), optim.SDMGradState) else 1
    first, second, third = (scale * random_gradients(seed) for seed in range(3))
    weighting = weighting()
    with jax.enable_x64(True):
        state = tx.init(None)
        update = jax.jit(tx.update)
        for j1, j2, j3 in zip(first, first + 0.2 * second, third, strict=True):
            updates, state = update(j3, state, samples=(j1, j2))
            weights = weighting(torch.tensor(j1 @ j2.T)).numpy()
            np.testing.assert_allclose(updates, weights @ j3, atol=1e-6 * scale)
            own = weighting._w if scale > 1 else weighting._lambda
            np.testing.assert_allclose(state.weights, own.numpy(), atol=1e-6)
            # Roundings are not to grow from step to step.
            state = state._replace(weights=own.numpy())
