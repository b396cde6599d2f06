"""The pieces beside other pieces of optax, under JAX's transformations, and alone."""

import ast
import doctest
import functools
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating
from optim_problems import (
    TASKS,
    as_matrix,
    as_vector,
    assert_trees_close,
    assert_trees_equal,
    compiled_step,
    quadratics,
    random_gradients,
    random_params,
    row,
    run,
    start,
    task_gradients_of,
)

from mtl_jax import optim

KEY = jax.random.key(0)
WEIGHTS = (0.5, 2.0, 1.0)


def unit_mean(gram):
    """Weights of the mean of the unit gradients."""
    norms = jnp.sqrt(jnp.diagonal(gram))
    return 1 / (len(gram) * jnp.maximum(norms, 1e-15))


def by_losses(gram, totals, *, task_losses, active, **extra_args):
    """Each task's share of the losses so far."""
    totals += jnp.where(active, task_losses, 0)
    return totals / totals.sum(), totals


AGGREGATORS = {
    "weighted_sum": lambda: optim.weighted_sum(WEIGHTS),
    "pcgrad": lambda: optim.pcgrad(KEY),
    "gradnorm": lambda: optim.gradnorm(TASKS, learning_rate=0.1),
    "per_task": lambda: optim.per_task(optax.scale_by_adam(), TASKS),
    "from_gram": lambda: optim.from_gram(unit_mean),
    "from_gram with a state": lambda: optim.from_gram(
        by_losses, lambda params: jnp.zeros(TASKS)
    ),
}
JOINT = {
    **AGGREGATORS,
    "scaled": lambda: optax.chain(
        optim.scale_by_task(WEIGHTS), optim.pcgrad(jax.random.key(1))
    ),
}
SEQUENTIAL = {
    "independent": lambda tx: optim.independent(tx, TASKS),
    "alternating": optim.alternating,
    "random_grouping": lambda tx: optim.random_grouping(tx, 2, KEY),
}


def extra_args(seed):
    losses = np.random.default_rng(seed).uniform(0.2, 3, TASKS).astype(np.float32)
    return {"task_losses": losses, "active": np.ones(TASKS, bool), "unknown": seed}


def rest_of_the_chain():
    """Decay of some leaves, clipping, Adam on an injected schedule."""
    decay = optax.add_decayed_weights(0.1)
    return optax.chain(
        optax.masked(decay, {"encoder": True, "head": False}),
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 6)),
    )


def several(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def trained(tx, params, gradients, extra):
    """Parameters and state after a scan over stacked gradients and extra arguments."""

    def step(carry, inputs):
        params, state = carry
        gradients, extra = inputs
        updates, state = tx.update(gradients, state, params, **extra)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), (gradients, extra))[0]


def one_by_one(parts, gradients, extra):
    """Parameters and states after each transformation's own updates, in a loop."""
    params = random_params()
    states = [tx.init(params) for tx in parts]
    update_fns = [jax.jit(tx.update) for tx in parts]
    for updates, own_extra in zip(gradients, extra, strict=True):
        for i, update in enumerate(update_fns):
            updates, states[i] = update(updates, states[i], params, **own_extra)
        params = jax.tree.map(np.add, params, updates)
    return params, tuple(states)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_composes_under_jit_and_scan(name):
    """First in a chain, and between the other arguments of `process`."""
    scaled, aggregator = optim.scale_by_task(WEIGHTS), AGGREGATORS[name]()
    assert isinstance(aggregator, aggregating.Aggregator)
    rest = rest_of_the_chain()
    processed = aggregating.process(scaled, aggregator, rest)
    assert isinstance(processed, aggregating.Aggregator)
    gradients = [random_gradients(i) for i in range(4)]
    extra = [extra_args(i) for i in range(4)]
    inputs = random_params(), several(gradients), several(extra)
    for tx, parts in [
        (optax.chain(aggregator, rest), (aggregator, rest)),
        (processed, (scaled, aggregator, rest)),
    ]:
        actual = jax.jit(functools.partial(trained, tx))(*inputs)
        expected = one_by_one(parts, gradients, extra)
        assert_trees_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_optimizer_made_anew_at_every_step_is_an_aggregator_if_it_is_one():
    for name, make in JOINT.items():
        tx = optim.by_step(lambda count, make=make: make())
        assert isinstance(tx, aggregating.Aggregator) == (name in AGGREGATORS)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_one_rule_for_the_encoder_and_another_for_the_heads(name):
    first = JOINT[name]()
    tx = optax.multi_transform(
        {
            "shared": optax.chain(first, optax.scale(-0.1)),
            "own": optax.chain(optim.weighted_sum(), optax.sgd(0.5)),
            # A group without parameters.
            "none": optax.chain(JOINT[name](), optax.scale(-0.1)),
        },
        {"encoder": "shared", "head": "own"},
    )
    params, gradients = random_params(), random_gradients(1)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params, **extra_args(1))
    encoder = {"encoder": params["encoder"]}
    expected, _ = jax.jit(first.update)(
        {"encoder": gradients["encoder"]}, first.init(encoder), encoder, **extra_args(1)
    )
    expected = {
        "encoder": jax.tree.map(
            lambda leaf: -0.1 * np.asarray(leaf), expected["encoder"]
        ),
        "head": jax.tree.map(lambda leaf: -0.5 * leaf.sum(0), gradients["head"]),
    }
    assert_trees_close(updates, expected, rtol=1e-4, atol=1e-5)


def test_masked():
    shared = {"encoder": True, "head": False}
    tx = optax.chain(
        optax.masked(optim.pcgrad(KEY), shared),
        optax.masked(optim.weighted_sum(), {"encoder": False, "head": True}),
    )
    params, gradients = random_params(), random_gradients(2)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    first = optim.pcgrad(KEY)
    expected, _ = jax.jit(first.update)(gradients["encoder"], first.init(None))
    assert_trees_close(updates["encoder"], expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(
        updates["head"]["scale"], gradients["head"]["scale"].sum(0), rtol=1e-6
    )


def by_hand(name, gradients, params):
    """Updates after two steps of the same gradients [N, D] at the same params [D]."""
    total = gradients.sum(0)
    if name == "clip before":
        return total * min(1, 0.5 / np.linalg.norm(gradients))
    if name == "clip after":
        return total * min(1, 0.5 / np.linalg.norm(total))
    if name == "decay before":
        return total + TASKS * 0.1 * params
    if name == "decay after":
        return total + 0.1 * params
    if name == "average after":
        return 0.1 * total + 0.9 * 0.1 * total
    if name == "schedule after":
        return total / 2
    assert name == "microbatches after"
    return total


ORDERS = {
    "clip before": lambda: (optax.clip_by_global_norm(0.5), optim.weighted_sum()),
    "clip after": lambda: (optim.weighted_sum(), optax.clip_by_global_norm(0.5)),
    "decay before": lambda: (optax.add_decayed_weights(0.1), optim.weighted_sum()),
    "decay after": lambda: (optim.weighted_sum(), optax.add_decayed_weights(0.1)),
    "average after": lambda: (optim.weighted_sum(), optax.ema(0.9, debias=False)),
    # The second step's value: one count a step.
    "schedule after": lambda: (
        optim.weighted_sum(),
        optax.scale_by_schedule(lambda count: 1 / (1 + count)),
    ),
    # The mean of two equal aggregates, in the second step.
    "microbatches after": lambda: (
        optim.weighted_sum(),
        optax.MultiSteps(optax.identity(), 2).gradient_transformation(),
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_what_the_order_in_a_chain_means(name):
    tx = optax.chain(*ORDERS[name]())
    params, gradients = random_params(), random_gradients(5)

    def step(state, _):
        updates, state = tx.update(gradients, state, params)
        return state, updates

    _, updates = jax.jit(lambda params: jax.lax.scan(step, tx.init(params), length=2))(
        params
    )
    expected = by_hand(name, as_matrix(gradients), as_vector(params))
    np.testing.assert_allclose(
        as_vector(row(updates, 1)), expected, rtol=1e-5, atol=1e-6
    )
    if name == "microbatches after":
        assert not as_vector(row(updates, 0)).any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        # Its state has no task axis.
        (
            lambda: optax.chain(optax.adam(0.1), optim.weighted_sum()),
            TypeError,
            "carry",
        ),
        (
            lambda: optax.MultiSteps(optim.weighted_sum(), 2).gradient_transformation(),
            ValueError,
            "must have a leading task axis",
        ),
        (
            lambda: optax.chain(optim.weighted_sum(), optim.weighted_sum()),
            ValueError,
            "an aggregator stands first in an optax.chain",
        ),
        (
            lambda: optax.chain(optim.weighted_sum(), optim.scale_by_task(WEIGHTS)),
            ValueError,
            "must have a leading task axis",
        ),
        (
            lambda: optax.inject_hyperparams(
                lambda rate: optim.independent(optax.sgd(rate), TASKS)
            )(0.1),
            TypeError,
            "update needs the TaskGradients that optim.task_gradients makes, got dict",
        ),
        (
            lambda: optax.chain(optim.alternating(optax.sgd(0.1))),
            TypeError,
            "update needs the TaskGradients that optim.task_gradients makes, got dict",
        ),
    ],
)
def test_orders_that_are_refused(make, error, message):
    inputs = random_params(), several([random_gradients(0)] * 2), {}
    with pytest.raises(error, match=message):
        jax.eval_shape(functools.partial(trained, make()), *inputs)


def test_microbatches_inside_a_sequential_optimizer():
    """Each task gathers its own gradients, and nothing moves before the last one."""
    gathered = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    optimizer = optim.independent(gathered, TASKS)
    step = compiled_step(optimizer)
    problem = quadratics(0)
    first, *_ = run(optimizer.init, step, *problem, 1)
    assert_trees_equal(first, start())
    second, *_ = run(optimizer.init, step, *problem, 2)
    w, v = start()["w"], start()["b"]["v"]
    for target, curvature in zip(*problem, strict=True):
        # The mean of the gradients at the start and where the last task ended.
        w_mean, v_mean = (w + start()["w"]) / 2, (v + start()["b"]["v"]) / 2
        w = w - 0.1 * curvature * (w_mean - target)
        v = v - 0.1 * curvature * (v_mean + target)
    assert_trees_close(second, {"w": w, "b": {"v": v}}, rtol=1e-4, atol=1e-6)


def test_an_aggregator_inside_a_sequential_optimizer_has_nothing_to_aggregate():
    for aggregator in (optim.weighted_sum(), optim.pcgrad(jax.random.key(0))):
        tx = optax.chain(aggregator, optax.sgd(0.1))
        optimizer = optim.independent(tx, TASKS)
        with pytest.raises(ValueError, match="must have a leading task axis"):
            run(optimizer.init, compiled_step(optimizer), *quadratics(0), 1)


def test_hyperparameters_may_be_injected():
    params = random_params()

    def updates(tx, steps=2):
        state = tx.init(params)
        update = jax.jit(tx.update)
        for i in range(steps):
            result, state = update(random_gradients(i), state, params, **extra_args(i))
        return result

    inject = optax.inject_hyperparams
    pairs = [
        # Task weights on a schedule.
        (
            inject(optim.weighted_sum)(lambda count: jnp.array(WEIGHTS) * (1 + count)),
            optim.weighted_sum(2 * np.array(WEIGHTS)),
        ),
        (
            inject(optim.gradnorm, static_args=("num_tasks", "shared"))(
                TASKS, optax.constant_schedule(0.5), learning_rate=0.1
            ),
            optim.gradnorm(TASKS, 0.5, 0.1),
        ),
        (inject(optim.pcgrad, static_args="key")(KEY), optim.pcgrad(KEY)),
        (
            inject(lambda rate: optim.per_task(optax.adam(rate), TASKS))(rate=0.1),
            optim.per_task(optax.adam(0.1), TASKS),
        ),
    ]
    for injected, plain in pairs:
        assert_trees_close(updates(injected), updates(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["pcgrad", "gradnorm", "per_task"])
def test_joint_ones_under_vmap(name):
    train = functools.partial(trained, optax.chain(JOINT[name](), optax.scale(-0.1)))
    runs = [
        (
            random_params(i),
            several([random_gradients(10 * i + j) for j in range(2)]),
            several([extra_args(10 * i + j) for j in range(2)]),
        )
        for i in range(3)
    ]
    together = jax.jit(jax.vmap(train))(*several(runs))
    alone = jax.jit(train)
    for i, inputs in enumerate(runs):
        assert_trees_close(row(together, i), alone(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_ones_under_scan_and_vmap(name):
    optimizer = SEQUENTIAL[name](optax.adam(0.1))
    problems = [quadratics(seed) for seed in range(3)]
    active = np.array([True, False, True])

    def train(targets, curvatures):
        gradients = task_gradients_of(targets, curvatures)

        def step(carry, _):
            params, state, _, losses = optimizer.update(
                gradients, carry[1], carry[0], active=active
            )
            return (params, state), losses

        init = start(), optimizer.init(start())
        (params, state), losses = jax.lax.scan(step, init, length=3)
        return params, state, losses

    together = jax.jit(jax.vmap(train))(*several(problems))
    step = compiled_step(optimizer)
    for i, problem in enumerate(problems):
        expected = run(optimizer.init, step, *problem, 3, active=active)
        assert_trees_close(row(together, i), expected, rtol=1e-4, atol=1e-5)


def types_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", JOINT)
def test_joint_updates_and_states_keep_their_types(name, dtype):
    tx = JOINT[name]()
    params = random_params(dtype=dtype)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(
        functools.partial(tx.update, **extra_args(0)),
        random_gradients(0, dtype=dtype),
        state,
        params,
    )
    assert types_of(updates) == types_of(params)
    assert types_of(after) == types_of(state)
    assert_plain_arrays(state)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_states_keep_their_types(name, dtype):
    optimizer = SEQUENTIAL[name](optax.adamw(0.1))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), start())
    state = jax.eval_shape(optimizer.init, params)

    def update(params, state, active):
        gradients = task_gradients_of(*quadratics(0))
        return optimizer.update(gradients, state, params, active=active)

    active = np.ones(TASKS, bool)
    new_params, after, _, losses = jax.eval_shape(update, params, state, active)
    assert types_of(new_params) == types_of(params)
    assert types_of(after) == types_of(state)
    assert types_of(losses) == ((TASKS,), jnp.float32)
    assert_plain_arrays(state)


def assert_plain_arrays(state):
    for leaf in jax.tree.leaves(state):
        assert not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("name", ["pcgrad", "gradnorm"])
def test_bfloat16_is_near_float32(name):
    tx = JOINT[name]()
    params = random_params(dtype=jnp.bfloat16)
    gradients = random_gradients(0, dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), gradients)
    update = jax.jit(tx.update)
    state = tx.init(params)
    for i in range(2):
        expected, expected_state = update(wide, state, **extra_args(i))
        updates, state = update(gradients, state, **extra_args(i))
        assert_trees_close(updates, expected, rtol=2**-7)
        assert_trees_close(state, expected_state, rtol=1e-5)


@pytest.mark.parametrize("name", JOINT)
def test_results_are_finite_whatever_is_zero_huge_tiny_or_the_same(name):
    tx, params = JOINT[name](), random_params()
    state, update = tx.init(params), jax.jit(tx.update)
    cases = [
        (gradient_scales, loss_scale, is_same)
        for gradient_scales in itertools.product([0, 1e-15, 1, 1e15], repeat=TASKS)
        for loss_scale, is_same in [(1, False), (0, True), (1e-15, False), (1e15, True)]
    ]
    # One state goes through all of it.
    for i, (scales, loss_scale, is_same) in enumerate(cases):
        gradients = jax.tree.map(
            lambda leaf, scales=scales, is_same=is_same: (
                (leaf[:1] if is_same else leaf)
                * np.float32(scales).reshape(-1, *(1,) * (leaf.ndim - 1))
            ),
            random_gradients(i),
        )
        extra = extra_args(i)
        extra["task_losses"] = np.float32(loss_scale) * extra["task_losses"]
        updates, state = update(gradients, state, params, **extra)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["pcgrad", "gradnorm"])
def test_a_state_that_was_saved_goes_on_the_same(name):
    tx = JOINT[name]()
    update = jax.jit(tx.update)
    state = tx.init(random_params())
    for i in range(3):
        saved = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        (updates, state), again = (
            update(random_gradients(i), s, **extra_args(i)) for s in (state, saved)
        )
        assert_trees_equal(again, (updates, state))


@pytest.mark.parametrize("name", [n for n in optim.__all__ if n[0].islower()])
def test_the_example_in_the_docstring_runs(name):
    runner = doctest.DocTestRunner()
    finder = doctest.DocTestFinder()
    for example in finder.find(getattr(optim, name), name, module=False, globs={}):
        runner.run(example)
    results = runner.summarize(verbose=False)
    assert results.attempted > 0
    assert results.failed == 0


def test_nothing_but_jax_optax_and_chex_is_imported():
    allowed = {"jax", "optax", "chex", "numpy", "collections", "functools", "typing"}
    for path in pathlib.Path(optim.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            for name in names:
                assert name.startswith("mtl_jax.optim") or name.split(".")[0] in allowed


def test_no_word_is_of_the_eye():
    """But in the titles of papers."""
    for path in pathlib.Path(optim.__file__).parent.glob("*.py"):
        text = re.sub(r'References:.*?"""', "", path.read_text(), flags=re.S)
        assert not re.search(
            r"\b(fund(us|i)|glaucoma|retina|optic|disc|cup|fovea|photograph)",
            text,
            re.I,
        ), path
