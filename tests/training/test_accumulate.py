"""Gradients summed over microbatches are those of the large batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import SmallNetwork

from mtl_jax import configuration, methods, tasks
from mtl_jax.configuration import defaults
from mtl_jax.errors import UserError
from mtl_jax.training import parallel
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState

NAMES = tuple(tasks.TASKS)
BATCH_SIZE, MICROBATCHES = 6, 3
# A sequential method of single tasks, one of groups, one of weighted sums, and a joint
# one: together all functions that a registered method takes its gradients from.
CASES = [
    ("independent", "own"),
    ("random_grouping", "shared"),
    ("gradnorm", "shared"),
    ("pcgrad", "shared"),
]


def start(optimizer, variables):
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        key=jax.random.key(0),
    )


def optimizer_of(name):
    """Steps proportional to the gradient, with a state that keeps it."""
    method = methods.METHODS[name]
    fields = {k: field.default for k, field in methods.fields().items()}
    return method.create(
        methods.Setting(
            optax.sgd(1.0, momentum=0.9), 4, jax.random.key(1), "trunk/kernel", fields
        )
    )


@functools.cache
def programs(name, layout, make_batch, random_variables):
    """A state, and the compiled steps of whole batches and of microbatches."""
    model, optimizer = SmallNetwork(norm=False), optimizer_of(name)
    state = start(optimizer, random_variables(model))
    batch = make_random_batch(make_batch, 0, 1.0, layout)
    return state, [
        jax.jit(steps.train_step(model, tasks.build(), optimizer, accumulate=number))
        .lower(state, batch)
        .compile()
        for number in (1, MICROBATCHES)
    ]


def make_random_batch(make_batch, seed, share, layout):
    batches = [
        dict(make_batch(BATCH_SIZE, seed=4 * seed + k))
        for k in range(4 if layout == "own" else 1)
    ]
    rng = np.random.default_rng(seed)
    for batch in batches:
        batch["has_label"] = rng.random((BATCH_SIZE, 4)) < share
    if layout == "shared":
        return batches[0]
    return {k: np.stack([batch[k] for batch in batches], 1) for k in batches[0]}


@pytest.mark.parametrize(("name", "layout"), CASES)
@settings(max_examples=5)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.1, 0.4, 1.0]))
def test_microbatches_make_the_step_of_the_batch(
    name, layout, make_batch, random_variables, seed, share
):
    state, (whole, accumulated) = programs(name, layout, make_batch, random_variables)
    batch = make_random_batch(make_batch, seed, share, layout)
    for _ in range(2):
        (expected, metrics), (found, ours) = (
            whole(state, batch),
            accumulated(state, batch),
        )
        for a, b in zip(
            jax.tree.leaves((found.params, found.opt_state, ours)),
            jax.tree.leaves((expected.params, expected.opt_state, metrics)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        state = expected


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_microbatches_need_less_memory(name, layout, make_batch, random_variables):
    _, both = programs(name, layout, make_batch, random_variables)
    whole, accumulated = (
        program.memory_analysis().temp_size_in_bytes for program in both
    )
    assert accumulated < 0.7 * whole


def test_statistics_are_those_of_microbatches(make_batch, random_variables):
    model, optimizer = SmallNetwork(), optimizer_of("pcgrad")
    variables, batch = random_variables(model), make_batch()
    step = jax.jit(steps.train_step(model, tasks.build(), optimizer, accumulate=2))
    state, _ = step(start(optimizer, variables), batch)
    expected = variables
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    for images in (batch["image"][0::2], batch["image"][1::2]):
        _, updated = apply(expected, images / np.float32(255))
        expected = {**variables, **updated}
    for a, b in zip(
        jax.tree.leaves(state.batch_stats),
        jax.tree.leaves(expected["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_batch_that_microbatches_cannot_share_is_refused():
    parallel.check_batch_size(8, 4)
    with pytest.raises(UserError, match="8, which 3 microbatches.*a multiple of 3"):
        parallel.check_batch_size(8, 3)
    config = defaults.get_config()
    config.accumulate = 0
    with pytest.raises(UserError, match="accumulate is 0; it must be positive"):
        configuration.check(config)
