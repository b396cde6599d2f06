"""What holds for every aggregator, whatever its method.

A new one is a line in AGGREGATORS. This file is also a program: run as a script it
aggregates sharded gradients on four simulated devices, and prints the results.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating
from optim_problems import (
    as_matrix,
    as_vector,
    assert_trees_close,
    random_gradients,
    random_params,
    row,
    stacked,
    without,
)

from mtl_jax import optim

KEY, DEVICES, STEPS, BATCH = jax.random.key(0), 4, 3, 4


class Case(NamedTuple):
    """An aggregator, and what is not true of it.

    Attributes:
      make: maps the number of tasks to the aggregator.
      fewest: number of tasks that it needs.
      is_random: whether it draws numbers that make a difference for two tasks.
      is_symmetric: whether tasks under other numbers are the same tasks.
      is_homogeneous: whether c times the gradients give c times the update.
    """

    make: Callable[[int], aggregating.Aggregator]
    fewest: int = 1
    is_random: bool = False
    is_symmetric: bool = True
    is_homogeneous: bool = True


AGGREGATORS = {
    "aligned_mtl": Case(lambda n: optim.aligned_mtl()),
    "cagrad": Case(lambda n: optim.cagrad(0.5)),
    "conflict_free": Case(lambda n: optim.conflict_free()),
    "cr_mogm": Case(lambda n: optim.cr_mogm(optim.imtl_g(), n)),
    "db_mtl": Case(lambda n: optim.db_mtl(n, 0.9, 0.5)),
    "dualproj": Case(lambda n: optim.dualproj()),
    "excess_mtl": Case(
        lambda n: optim.excess_mtl(n, n_warmup_steps=1), is_homogeneous=False
    ),
    "fairgrad": Case(lambda n: optim.fairgrad(1.0), is_homogeneous=False),
    "graddrop": Case(lambda n: optim.graddrop(KEY), is_random=True),
    "gradnorm": Case(lambda n: optim.gradnorm(n), is_homogeneous=False),
    "gradvac": Case(lambda n: optim.gradvac(n, KEY)),
    "imtl_g": Case(lambda n: optim.imtl_g()),
    "krum": Case(lambda n: optim.krum(0, 2), fewest=3),
    "mgda": Case(lambda n: optim.mgda()),
    "moco": Case(lambda n: optim.moco(n), is_homogeneous=False),
    "nash_mtl": Case(lambda n: optim.nash_mtl(n), is_homogeneous=False),
    "pcd": Case(lambda n: optim.pcd(n, 0.3, 0.9, 0.0), is_symmetric=False),
    "pcgrad": Case(lambda n: optim.pcgrad(KEY)),
    "per_task": Case(lambda n: optim.per_task(optax.trace(0.9), n)),
    "random_weighting": Case(lambda n: optim.random_weighting(KEY), is_random=True),
    "trimmed_mean": Case(lambda n: optim.trimmed_mean(1), fewest=3),
    "upgrad": Case(lambda n: optim.upgrad()),
    "weighted_sum": Case(lambda n: optim.weighted_sum()),
}


def every_that(holds):
    return pytest.mark.parametrize(
        "name", [name for name, case in AGGREGATORS.items() if holds(case)]
    )


every = every_that(lambda case: True)


def few(name):
    """Two tasks, or as many as are needed."""
    return max(AGGREGATORS[name].fewest, 2)


def losses(n, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 3, n).astype(np.float32)


def recorded():
    """Passes the updates on, and keeps them as its state."""
    return optax.GradientTransformation(
        lambda params: params, lambda updates, state, params: (updates, updates)
    )


@functools.cache
def compiled(name, n):
    """The updates, parameters and states of BATCH problems of STEPS steps.

    For few tasks, it is one program of everything. Of other numbers, there are only the
    aggregator's own updates, which take a third of the time to compile.
    """
    return in_a_chain(name, n) if n == few(name) else alone(name, n)


def alone(name, n):
    tx = AGGREGATORS[name].make(n)
    update = jax.jit(tx.update)

    def train(gradients, values, active):
        found = []
        for i in range(BATCH):
            state, updates = tx.init(random_params()), []
            for t in range(STEPS):
                own = row(row((gradients, values, active), i), t)
                step, state = update(
                    own[0], state, random_params(), task_losses=own[1], active=own[2]
                )
                updates.append(step)
            found.append((stacked(updates), random_params(), state))
        return stacked(found)

    return train


def in_a_chain(name, n):
    tx = optax.chain(
        AGGREGATORS[name].make(n),
        recorded(),
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(0.1),
        optax.sgd(0.3),
    )

    def train(gradients, values, active):
        def step(carry, inputs):
            params, state = carry
            gradients, values, active = inputs
            updates, state = tx.update(
                gradients, state, params, task_losses=values, active=active
            )
            return (optax.apply_updates(params, updates), state), state[1]

        start = random_params(), tx.init(random_params())
        (params, state), updates = jax.lax.scan(
            step, start, (gradients, values, active)
        )
        return updates, params, state

    return jax.jit(jax.vmap(train))


def trained(name, problems, active=None):
    """The aggregator's updates and the last parameters for each of some problems."""
    n = problems[0][1].shape[1]
    active = np.broadcast_to(True if active is None else active, (BATCH, STEPS, n))
    found = []
    for i in range(0, len(problems), BATCH):
        some = problems[i : i + BATCH]
        some += some[:1] * (BATCH - len(some))
        updates, params, state = compiled(name, n)(*stacked(some), active)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        found += [(row(updates, i), row(params, i)) for i in range(BATCH)]
    return found[: len(problems)]


def problem(n, seed=0):
    """Gradients and losses of STEPS steps."""
    gradients = stacked([random_gradients([seed, i], n) for i in range(STEPS)])
    return gradients, np.stack([losses(n, [seed, i]) for i in range(STEPS)])


def first_updates(name, cases):
    """The updates of a first step for some gradients."""
    n = len(cases[0]["head"]["scale"])
    problems = [(stacked([case] * STEPS), losses([STEPS, n])) for case in cases]
    return [row(updates, 0) for updates, _ in trained(name, problems)]


def scaled(gradients, factors):
    return without(gradients, np.float32(factors))


@every_that(lambda case: case.fewest == 1)
def test_of_one_task_it_is_a_step_along_its_gradient(name):
    gradients = random_gradients(0, 1)
    update = as_vector(first_updates(name, [gradients])[0])
    gradient = as_matrix(gradients)[0]
    length = update @ gradient / (gradient @ gradient)
    np.testing.assert_allclose(update, length * gradient, rtol=1e-4, atol=1e-6)
    assert length > 0.01


@every
def test_an_absent_task_is_not_read_and_as_if_it_were_not_there(name):
    n = few(name)
    gradients, values = problem(n + 1)
    # Without a first task, some methods do nothing.
    for absent in (0, n) if AGGREGATORS[name].is_symmetric else (n,):
        present = np.arange(n + 1) != absent
        others = jax.tree.map(lambda leaf, p=present: leaf[:, p], gradients)
        (expected,) = trained(name, [(others, values[:, present])])
        hidden = jax.tree.map(np.copy, (gradients, values))
        for leaf in jax.tree.leaves(hidden):
            leaf[:, absent] = np.nan
        (actual,) = trained(name, [hidden], present)
        if not AGGREGATORS[name].is_random:
            assert_trees_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    ((updates, _),) = trained(name, [problem(n + 1)], np.zeros(n + 1, bool))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))


@every
def test_a_gradient_of_zero_and_parameters_that_tasks_do_not_touch(name):
    n = few(name)
    gradients = random_gradients(1, n)
    # A leaf that the first task does not touch, and one that nobody does.
    gradients["encoder"]["bias"][0] = 0
    gradients["head"]["scale"][:] = 0
    absent = np.arange(n) > 0
    update, _, nothing = first_updates(
        name,
        [scaled(gradients, active) for active in (1 + 0 * absent, absent, [0] * n)],
    )
    assert update["head"]["scale"] == 0
    assert np.abs(as_vector(update)).max() > 1e-3
    np.testing.assert_array_equal(as_vector(nothing), 0)


@every
def test_degenerate_gradients_have_finite_updates(name):
    n = few(name) + 1
    gradients = random_gradients(2, n)
    first = jax.tree.map(lambda leaf: np.repeat(leaf[:1], n, 0), gradients)
    ones = np.ones(n)
    of_two_parameters = jax.tree.map(np.zeros_like, gradients)
    of_two_parameters["encoder"]["bias"][:, :2] = gradients["encoder"]["bias"][:, :2]
    cases = [
        first,
        scaled(first, [-1, *ones[1:]]),
        scaled(first, np.arange(n) - 1),
        of_two_parameters,
        *(scaled(gradients, 10.0**e * ones) for e in (-15, 15)),
        *(scaled(g, [1e15, 1e-15, *ones[2:]]) for g in (gradients, first)),
    ]
    for update in first_updates(name, cases):
        assert np.isfinite(as_vector(update)).all()


@every_that(lambda case: case.is_symmetric and not case.is_random)
def test_tasks_under_other_numbers_are_the_same_tasks(name):
    gradients, values = problem(few(name))
    renamed = jax.tree.map(lambda leaf: leaf[:, ::-1], gradients), values[:, ::-1]
    expected, actual = trained(name, [(gradients, values), renamed])
    assert_trees_close(actual, expected, rtol=1e-4, atol=1e-5)


@every_that(lambda case: case.is_homogeneous)
def test_scaled_gradients_have_a_scaled_update(name):
    gradients, values = problem(few(name))
    factors = np.float32([1, 2.0**-40, 2.0**40])
    found = trained(
        name, [(scaled(gradients, [c] * STEPS), values) for c in factors.tolist()]
    )
    for (updates, _), factor in zip(found, factors, strict=True):
        expected = scaled(found[0][0], [factor] * STEPS)
        assert_trees_close(updates, expected, rtol=1e-4, atol=1e-5 * factor)


@every
def test_clipped_and_decayed_after_it(name):
    problems = [problem(few(name), seed) for seed in range(2)]
    for updates, params in trained(name, problems):
        w = as_vector(random_params())
        for t in range(STEPS):
            update = as_vector(row(updates, t))
            clipped = update * min(1, 0.5 / np.linalg.norm(update))
            w = w - 0.3 * (clipped + 0.1 * w)
        np.testing.assert_allclose(as_vector(params), w, rtol=1e-4, atol=1e-5)


@every
def test_bfloat16_is_near_float32(name):
    n = few(name)
    tx = AGGREGATORS[name].make(n)
    assert isinstance(tx, aggregating.Aggregator)
    halves, params = (
        random_gradients(3, n, jnp.bfloat16),
        random_params(dtype=jnp.bfloat16),
    )
    update = functools.partial(tx.update, task_losses=losses(n))
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(update, halves, state, params)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(updates))
    assert jax.tree.map(jnp.dtype, after) == jax.tree.map(jnp.dtype, state)
    # What from_gram makes has the inner products and the sum of all that it makes.
    if not isinstance(tx, optim.WeightedAggregator) or name == "imtl_g":
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), halves)
        updates, _ = jax.jit(update)(halves, tx.init(params), params)
        (expected,) = first_updates(name, [wide])
        assert_trees_close(updates, expected, rtol=2**-7, atol=1e-2)


SHARDED = {"kernel": (8, 3), "bias": (4,)}
# One of each way to read the gradients, on a mesh that is part of their types.
EXPLICIT = ("imtl_g", "gradnorm", "excess_mtl", "db_mtl", "graddrop", "trimmed_mean")


def aggregated(name, place):
    """One update of parameters, each laid out by `place`."""
    n, rng = few(name), np.random.default_rng(4)
    gradients = {
        key: place(rng.normal(size=(n, *shape)).astype(np.float32), 1)
        for key, shape in SHARDED.items()
    }
    params = {key: place(np.ones(s, np.float32), 0) for key, s in SHARDED.items()}
    tx = AGGREGATORS[name].make(n)
    step = jax.jit(
        lambda gradients, params: tx.update(
            gradients, tx.init(params), params, task_losses=losses(n)
        )[0]
    )
    return step(gradients, params)


def aggregate_on_all_devices(axis_type, names):
    mesh = jax.make_mesh((DEVICES,), ("model",), (axis_type,))

    def place(array, axis):
        spec = jax.sharding.PartitionSpec(*[None] * axis, "model")
        return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))

    found = {}
    for name in names:
        updates = aggregated(name, place)
        found[name] = {
            "updates": {key: np.asarray(x).tolist() for key, x in updates.items()},
            "shards": len(updates["kernel"].sharding.device_set),
        }
    return found


@pytest.fixture(scope="module")
def on_four_devices():
    """What another process makes of them: the number of devices is fixed for one."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        f"--xla_force_host_platform_device_count={DEVICES}",
        "PYTHONPATH": os.pathsep.join(
            [str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
    }
    process = subprocess.run(
        [sys.executable, __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@every
def test_sharded_parameters_have_the_same_updates(name, on_four_devices):
    expected = aggregated(name, lambda array, axis: array)
    for on_mesh in on_four_devices:
        found = on_mesh.get(name, on_four_devices[0][name])
        assert found["shards"] == DEVICES
        for key in SHARDED:
            np.testing.assert_allclose(
                found["updates"][key], expected[key], rtol=1e-4, atol=1e-5
            )


if __name__ == "__main__":
    print(
        json.dumps(
            [
                aggregate_on_all_devices(jax.sharding.AxisType.Auto, AGGREGATORS),
                aggregate_on_all_devices(jax.sharding.AxisType.Explicit, EXPLICIT),
            ]
        )
    )
