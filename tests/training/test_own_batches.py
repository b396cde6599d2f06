"""Steps in which each task has a batch of its own (`config.data.batches`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import SmallNetwork

from mtl_jax import losses, optim, tasks
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState

NAMES = tuple(tasks.TASKS)
KEY = jax.random.key(3)
SGD = functools.partial(optax.sgd, 0.05, momentum=0.9)
STEPS = 2
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


def is_trunk(path):
    return path == "trunk/kernel"


METHODS = {
    "independent": lambda: optim.independent(SGD(), 4),
    "alternating": lambda: optim.alternating(SGD()),
    "vanilla": lambda: optim.random_grouping(SGD(), 1, KEY),
    # Without a key the groups are fixed: tasks 0 and 2, tasks 1 and 3.
    "random_grouping": lambda: optim.random_grouping(SGD(), 2, None),
    "random_grouping, own states": lambda: optim.random_grouping(
        SGD(), 2, None, states="task", num_tasks=4
    ),
    "per_task": lambda: optim.per_task(SGD(), 4),
    "pcgrad": lambda: optax.chain(optim.pcgrad(KEY), SGD()),
    "gradnorm": lambda: optim.weighted(
        optim.gradnorm_weighting(4, shared=is_trunk), SGD()
    ),
}

# Groups of tasks whose gradients are taken at one point, and whose optimizer state a
# gradient goes through: that of its group, of its task, or the only one.
BY_HAND = {
    "independent": ([[0], [1], [2], [3]], "group"),
    "alternating": ([[0], [1], [2], [3]], "one"),
    "vanilla": ([[0, 1, 2, 3]], "group"),
    "random_grouping": ([[0, 2], [1, 3]], "group"),
    "random_grouping, own states": ([[0, 2], [1, 3]], "task"),
    "per_task": ([[0, 1, 2, 3]], "task"),
}


def start(optimizer, variables):
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        key=jax.random.key(0),
    )


@pytest.fixture(scope="module")
def variables(random_variables):
    return random_variables(SmallNetwork())


@pytest.fixture(scope="module")
def batches(make_batch):
    """For each step, a batch of each task. Only its own labels are complete."""
    rng = np.random.default_rng(0)
    found = []
    for step in range(STEPS):
        own = [dict(make_batch(seed=10 * step + k)) for k in range(4)]
        for k, batch in enumerate(own):
            batch["has_label"] = rng.random((4, 4)) < 0.5
            batch["has_label"][:, k] = True
        found.append(own)
    return found


def on_task_axis(own):
    return {key: np.stack([batch[key] for batch in own], axis=1) for key in own[0]}


@pytest.fixture(scope="module")
def gradient_of():
    """`(task, params, batch_stats, batch) -> (loss, batch_stats), gradient`."""

    @functools.partial(jax.jit, static_argnums=0)
    def compute(index, params, batch_stats, batch):
        task = tasks.build()[index]

        def loss(params):
            logits, updated = SmallNetwork().apply(
                {"params": params, "batch_stats": batch_stats},
                batch["image"] / 255.0,
                heads=[task.name],
                train=True,
                mutable=["batch_stats"],
            )
            labelled = batch["has_label"][:, index]
            values = task.loss(logits[task.name], batch)
            return losses.masked_mean(values, labelled), updated["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    return compute


def assert_close(actual, expected):
    jax.tree.map(close, actual, expected)


def take_steps(optimizer, variables, batches, **options):
    step = jax.jit(
        steps.train_step(SmallNetwork(), tasks.build(), optimizer, **options)
    )
    state, history = start(optimizer, variables), []
    for batch in batches:
        state, metrics = step(state, batch)
        history.append(metrics)
    return state, history


@pytest.mark.parametrize("method", BY_HAND)
def test_each_gradient_is_taken_on_the_tasks_own_batch(
    method, variables, batches, gradient_of
):
    groups, states_of = BY_HAND[method]
    params, batch_stats = variables["params"], variables["batch_stats"]
    sgd, states, expected = SGD(), {}, []
    for own in batches:
        values = np.zeros(4)
        for number, group in enumerate(groups):
            taken = {}
            for k in group:
                (values[k], batch_stats), taken[k] = gradient_of(
                    k, params, batch_stats, own[k]
                )
            if states_of != "task":
                name = number if states_of == "group" else 0
                taken = {name: jax.tree.map(lambda *g: sum(g), *taken.values())}
            for name, gradient in taken.items():
                state = states.get(name, sgd.init(params))
                updates, states[name] = sgd.update(gradient, state)
                params = optax.apply_updates(params, updates)
        expected.append(values)

    state, history = take_steps(
        METHODS[method](), variables, map(on_task_axis, batches)
    )
    assert_close((state.params, state.batch_stats), (params, batch_stats))
    close([metrics["loss"] for metrics in history], expected)
    for metrics in history:
        np.testing.assert_array_equal(metrics["num_labels"], 4)


@pytest.mark.parametrize(
    ("method", "by_hand"),
    [
        ("pcgrad", lambda: optim.pcgrad(KEY)),
        ("gradnorm", lambda: optim.gradnorm(4, shared=is_trunk)),
    ],
)
def test_aggregators_are_given_the_gradients_of_own_batches(
    method, by_hand, variables, batches, gradient_of
):
    params, batch_stats = variables["params"], variables["batch_stats"]
    tx = optax.chain(by_hand(), SGD())
    opt_state, told = tx.init(params), []
    for own in batches:
        values, taken = np.zeros(4, np.float32), []
        for k in range(4):
            (values[k], batch_stats), gradient = gradient_of(
                k, params, batch_stats, own[k]
            )
            taken.append(gradient)
        stacked = jax.tree.map(lambda *g: jnp.stack(g), *taken)
        updates, opt_state = tx.update(stacked, opt_state, params, task_losses=values)
        params = optax.apply_updates(params, updates)
        told.append({"loss": values, **steps.optimizer_metrics(opt_state)})

    state, history = take_steps(
        METHODS[method](), variables, map(on_task_axis, batches)
    )
    assert_close((state.params, state.batch_stats), (params, batch_stats))
    for metrics, expected in zip(history, told, strict=True):
        assert_close({k: metrics[k] for k in expected}, expected)
    if method == "gradnorm":
        assert np.ptp(history[-1]["weights"]) > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_the_same_batch_for_all_tasks_is_a_shared_one(method, variables, tiny_batch):
    own = on_task_axis([tiny_batch] * 4)
    found = [
        take_steps(METHODS[method](), variables, [batch] * STEPS)
        for batch in (tiny_batch, own)
    ]
    (shared, shared_history), (state, history) = found
    # Running averages do differ: a shared pass counts once.
    assert_close((state.params, history), (shared.params, shared_history))
