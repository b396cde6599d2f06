"""The aggregators are those of TorchJD, in float64, on random gradients.

TorchJD is no dependency, and of the tests neither; `.ci/run` installs it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import optim
from mtl_jax.optim import _graddrop, _gradvac, _random_weighting

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
theirs = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")

KEY, MATRICES, TASKS, SIZE = jax.random.key(0), 200, 5, 9
PREF = [0.5, 2.0, 1.0, 3.0, 1.5]
LEAK = np.linspace(0, 1, TASKS)


class Pair(NamedTuple):
    """One method, as it is here and there.

    Attributes:
      ours: the aggregator.
      theirs: the name there.
      parameters: of the one there.
      is_for_any: whether the two agree on dependent gradients as well.
    """

    ours: Any
    theirs: str
    parameters: dict[str, Any]
    is_for_any: bool = True


def smoothed(weighting, **parameters):
    return theirs.GramianWeightedAggregator(
        theirs.CRMOGMWeighting(getattr(theirs, weighting)(), **parameters)
    )


PAIRS = {
    "imtl_g": Pair(lambda: optim.imtl_g(), "IMTLG", {}, False),
    **{
        f"aligned_mtl {mode}": Pair(
            lambda mode=mode: optim.aligned_mtl(scale_mode=mode),
            "AlignedMTL",
            {"scale_mode": mode},
        )
        for mode in ("min", "median", "rmse")
    },
    "aligned_mtl with preferences": Pair(
        lambda: optim.aligned_mtl(PREF),
        "AlignedMTL",
        {"pref_vector": PREF},
    ),
    "conflict_free": Pair(lambda: optim.conflict_free(), "ConFIG", {}),
    "conflict_free with preferences": Pair(
        lambda: optim.conflict_free(PREF), "ConFIG", {"pref_vector": PREF}
    ),
    # Nothing is added to the norms here.
    "gradvac": Pair(
        lambda: optim.gradvac(TASKS, KEY, 0.3), "GradVac", {"beta": 0.3, "eps": 0.0}
    ),
    "pcd": Pair(lambda: optim.pcd(TASKS), "PCD", {}),
    "pcd for much progress": Pair(
        lambda: optim.pcd(TASKS, [0.1, 0.2, 0.3, 0.4], 0.9, 0.0),
        "PCD",
        {"tau": [0.1, 0.2, 0.3, 0.4], "beta": 0.9, "eps": 0.0},
    ),
    "krum": Pair(lambda: optim.krum(1), "Krum", {"n_byzantine": 1}),
    "krum of several": Pair(
        lambda: optim.krum(0, 3), "Krum", {"n_byzantine": 0, "n_selected": 3}
    ),
    "random_weighting": Pair(lambda: optim.random_weighting(KEY), "Random", {}),
    "mean": Pair(lambda: optim.trimmed_mean(0), "Mean", {}),
    "trimmed_mean": Pair(
        lambda: optim.trimmed_mean(1), "TrimmedMean", {"trim_number": 1}
    ),
    "graddrop": Pair(
        lambda: optim.graddrop(KEY, jnp.square, LEAK),
        "GradDrop",
        {"f": lambda p: p**2, "leak": LEAK},
    ),
    "graddrop without a leak": Pair(lambda: optim.graddrop(KEY), "GradDrop", {}),
    "excess_mtl": Pair(lambda: optim.excess_mtl(TASKS, 1.0, 0), "ExcessMTL", {}),
    "excess_mtl with a warm-up": Pair(
        lambda: optim.excess_mtl(TASKS, 0.01, 3),
        "ExcessMTL",
        {"robust_step_size": 0.01, "n_warmup_steps": 3},
    ),
    "cr_mogm": Pair(
        lambda: optim.cr_mogm(optim.aligned_mtl(), TASKS),
        "smoothed",
        {"weighting": "AlignedMTLWeighting"},
    ),
    "cr_mogm with initial weights": Pair(
        lambda: optim.cr_mogm(optim.imtl_g(), TASKS, 0.5, np.arange(TASKS)),
        "smoothed",
        {
            "weighting": "IMTLGWeighting",
            "alpha": 0.5,
            "initial_weights": np.arange(5.0),
        },
        False,
    ),
}


def random_matrices(is_for_any):
    """Gradients of lengths from 0.1 to 10 that have a direction in common.

    A third of them are of four parameters, and so dependent, if they may be.
    """
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(MATRICES, TASKS, SIZE))
    matrices += rng.normal(size=(MATRICES, 1, SIZE))
    if is_for_any:
        matrices[::3, :, 4:] = 0
    return matrices * 10.0 ** rng.uniform(-1, 1, (MATRICES, TASKS, 1))


def torch_orders():
    """The orders that TorchJD's GradVac draws; a task's own turn comes last."""
    orders = []
    for i in range(TASKS):
        others = [j for j in range(TASKS) if j != i]
        orders.append([others[k] for k in torch.randperm(TASKS - 1).tolist()] + [i])
    return np.array(orders)


# What draws for a method here, and what TorchJD draws.
DRAWS = {
    "gradvac": (_gradvac, "random_orders", torch_orders),
    "random_weighting": (
        _random_weighting,
        "_normal",
        lambda: torch.randn(TASKS, dtype=torch.float64).numpy(),
    ),
    "graddrop": (
        _graddrop,
        "_uniforms",
        lambda: torch.rand(SIZE, dtype=torch.float64).numpy(),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_that_of_torchjd(name, monkeypatch):
    pair = PAIRS[name]
    matrices = random_matrices(pair.is_for_any)
    aggregator = (getattr(theirs, pair.theirs, None) or smoothed)(
        **{
            key: torch.tensor(value, dtype=torch.float64)
            if isinstance(value, list | np.ndarray)
            else value
            for key, value in pair.parameters.items()
        }
    )
    expected = []
    for i, matrix in enumerate(matrices):
        torch.manual_seed(i)
        expected.append(aggregator(torch.tensor(matrix)).numpy())
    draw = DRAWS.get(name.split()[0])
    with jax.enable_x64(True):
        if draw:
            module, function, numbers = draw
            drawn = []
            for i in range(MATRICES):
                torch.manual_seed(i)
                drawn.append(numbers())
            drawn = jnp.array(drawn)
            monkeypatch.setattr(module, function, lambda key, count, _: drawn[count])
        tx = pair.ours()

        @jax.jit
        def run(matrices):
            def step(state, matrix):
                updates, state = tx.update(matrix, state)
                return state, updates

            return jax.lax.scan(step, tx.init(jnp.zeros(SIZE)), matrices)[1]

        actual = run(matrices)
    assert actual.dtype == np.float64
    for ours, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-6 * np.abs(other).max())
