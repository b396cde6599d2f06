"""Steps whose gradients are all taken at one point, and the probe of interference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import SmallNetwork

from mtl_jax import losses, optim, tasks
from mtl_jax.models import MultiTaskUNet
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState

NAMES = tuple(tasks.TASKS)
KEY = jax.random.key(3)
SGD = functools.partial(optax.sgd, 0.1, momentum=0.9)


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
def task_gradients(variables):
    """Each task's loss and gradient by itself, as flat NumPy vectors."""

    @functools.partial(jax.jit, static_argnums=0)
    def compute(name, batch):
        task = tasks.build([name])[0]

        def loss(params):
            logits, _ = SmallNetwork().apply(
                {**variables, "params": params},
                batch["image"] / 255.0,
                heads=[name],
                train=True,
                mutable=["batch_stats"],
            )
            labelled = task.is_labelled(batch)
            return losses.masked_mean(task.loss(logits[name], batch), labelled)

        return jax.value_and_grad(loss)(variables["params"])

    def all_of(batch):
        found = [compute(name, batch) for name in NAMES]
        return [float(v) for v, _ in found], [g for _, g in found]

    return all_of


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def take_step(tx, variables, batch, **options):
    step = jax.jit(steps.joint_step(SmallNetwork(), tasks.build(), tx, **options))
    return step(start(tx, variables), batch)


@pytest.mark.parametrize("backward", ["scan", "vmap"])
def test_the_transform_is_given_every_tasks_gradient_and_loss(
    backward, variables, tiny_batch, task_gradients
):
    values, gradients = task_gradients(tiny_batch)
    weights = [0.5, 2.0, -1.0, 3.0]
    tx = optax.chain(optim.weighted_sum(weights), optax.sgd(1.0))
    state, metrics = take_step(tx, variables, tiny_batch, backward=backward)
    np.testing.assert_allclose(metrics["loss"], values, rtol=1e-5)
    expected = sum(w * flat(g) for w, g in zip(weights, gradients, strict=True))
    moved = flat(variables["params"]) - flat(state.params)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
    # One forward pass: the statistics move once.
    _, updated = SmallNetwork().apply(
        variables, tiny_batch["image"] / 255.0, train=True, mutable=["batch_stats"]
    )
    for a, b in zip(
        jax.tree.leaves(state.batch_stats),
        jax.tree.leaves(updated["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_pcgrad_projects_the_networks_gradients(variables, tiny_batch, task_gradients):
    _, gradients = task_gradients(tiny_batch)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    transform = optim.pcgrad(KEY)
    expected, told = transform.update(stacked, transform.init(variables["params"]))
    tx = optax.chain(optim.pcgrad(KEY), optax.sgd(1.0))
    state, metrics = take_step(tx, variables, tiny_batch)
    moved = flat(variables["params"]) - flat(state.params)
    np.testing.assert_allclose(moved, flat(expected), rtol=1e-4, atol=1e-6)
    assert metrics["conflicts"] == told.num_conflicts


def test_pcgrad_skips_a_step_that_is_not_finite(variables, tiny_batch):
    tx = optax.chain(optim.pcgrad(KEY), SGD())
    step = steps.joint_step(SmallNetwork(), tasks.build(), tx)
    step = jax.jit(steps.skip_nonfinite(step))
    before, metrics = step(start(tx, variables), tiny_batch)
    assert not metrics["skipped"]
    broken = {**tiny_batch, "fovea_xy": tiny_batch["fovea_xy"].copy()}
    broken["fovea_xy"][1] = np.nan
    after, metrics = step(before, broken)
    assert metrics["skipped"]
    np.testing.assert_array_equal(np.isfinite(metrics["loss"]), [1, 1, 1, 0])
    assert after.step == before.step + 1
    for field in ("params", "batch_stats", "opt_state"):
        old, new = (flat(getattr(state, field)) for state in (before, after))
        np.testing.assert_array_equal(old, new)
    after, metrics = step(after, tiny_batch)
    assert not metrics["skipped"]
    assert np.abs(flat(after.params) - flat(before.params)).max() > 1e-4


def test_gradnorm_is_told_losses_and_who_is_active(
    variables, tiny_batch, task_gradients
):
    batch = {**tiny_batch, "has_label": tiny_batch["has_label"].copy()}
    batch["has_label"][:, 2] = False
    values, gradients = task_gradients(batch)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    transform = optim.gradnorm(4, shared=lambda path: path == "trunk/kernel")
    active = np.array([True, True, False, True])
    _, told = transform.update(
        stacked,
        transform.init(variables["params"]),
        task_losses=jnp.array(values),
        active=active,
    )
    tx = optax.chain(transform, SGD())
    state, metrics = take_step(tx, variables, batch)
    np.testing.assert_allclose(metrics["weights"], told.weights, rtol=1e-5)
    assert metrics["weights"][2] == 1
    assert np.ptp(metrics["weights"]) > 0
    assert state.opt_state[0].initial_losses[2] == 0


def test_gradnorm_at_one_layer_is_that_of_all_gradients(variables, tiny_batch):
    batch = {**tiny_batch, "has_label": tiny_batch["has_label"].copy()}
    batch["has_label"][:2, 1] = False

    def shared(path):
        return path == "trunk/kernel"

    tx = optax.sgd(0.05)
    found = []
    for optimizer in (
        optim.weighted(optim.gradnorm_weighting(4, shared=shared), tx),
        optax.chain(optim.gradnorm(4, shared=shared), tx),
    ):
        model = SmallNetwork(dropout=0.3)
        step = jax.jit(steps.train_step(model, tasks.build(), optimizer))
        state, history = start(optimizer, variables), []
        for _ in range(4):
            state, metrics = step(state, batch)
            history.append(metrics)
        found.append((history, state.params, state.batch_stats))
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert np.ptp(found[0][0][-1]["weights"]) > 0.05


def test_vanilla_is_the_sum_of_all_gradients(variables, tiny_batch, task_gradients):
    _, gradients = task_gradients(tiny_batch)
    tx = optim.random_grouping(optax.sgd(1.0), 1, KEY)
    step = jax.jit(steps.train_step(SmallNetwork(), tasks.build(), tx))
    state, _ = step(start(tx, variables), tiny_batch)
    moved = flat(variables["params"]) - flat(state.params)
    expected = sum(flat(g) for g in gradients)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)


METHODS = {
    "alternating": lambda: optim.alternating(SGD()),
    "random_grouping": lambda: optim.random_grouping(SGD(), 2, KEY),
    "random_grouping, own states": lambda: optim.random_grouping(
        SGD(), 2, KEY, states="task", num_tasks=4
    ),
    "vanilla": lambda: optim.random_grouping(SGD(), 1, KEY),
    "pcgrad": lambda: optax.chain(optim.pcgrad(KEY), SGD()),
    "gradnorm": lambda: optim.weighted(optim.gradnorm_weighting(4), SGD()),
    "per_task": lambda: optim.per_task(SGD(), 4),
}


@pytest.fixture(scope="module", params=METHODS)
def method(request, variables, tiny_batch):
    """A method's compiled step and its state after one whole step."""
    optimizer = METHODS[request.param]()
    step = jax.jit(
        steps.train_step(SmallNetwork(dropout=0.3), tasks.build(), optimizer)
    )
    return request.param, step, step(start(optimizer, variables), tiny_batch)[0]


def test_what_is_not_annotated_moves_nothing(method, tiny_batch):
    """Momentum would move heads and states that a step touches at all."""
    name, step, state = method
    batch = {**tiny_batch, "has_label": np.zeros((4, 4), bool)}
    after, metrics = step(state, batch)
    for field in ("params", "batch_stats"):
        for a, b in zip(
            jax.tree.leaves(getattr(after, field)),
            jax.tree.leaves(getattr(state, field)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    moved = flat(after.opt_state) - flat(state.opt_state)
    # Groups are drawn anew at every step: only that is counted.
    is_counted = name == "vanilla" or name.startswith("random_grouping")
    assert np.abs(moved).sum() == is_counted
    assert not metrics["loss"].any()
    assert after.step == 2


def test_a_task_without_labels_keeps_its_own_state(variables, tiny_batch):
    batch = {**tiny_batch, "has_label": tiny_batch["has_label"].copy()}
    batch["has_label"][:, 3] = False
    tx = optim.per_task(SGD(), 4)
    step = jax.jit(steps.joint_step(SmallNetwork(), tasks.build(), tx))
    state, _ = step(start(tx, variables), tiny_batch)
    after, metrics = step(state, batch)
    rows = [
        [flat(jax.tree.map(lambda x, i=i: x[i], s.opt_state)) for i in range(4)]
        for s in (after, state)
    ]
    unchanged = [np.array_equal(a, b) for a, b in zip(*rows, strict=True)]
    assert unchanged == [False, False, False, True]
    for a, b in zip(
        jax.tree.leaves(after.params["head_fovea"]),
        jax.tree.leaves(state.params["head_fovea"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert metrics["loss"][3] == 0


def test_every_method_learns(method, tiny_batch):
    _, step, state = method
    state, first = step(state, tiny_batch)
    for _ in range(40):
        state, last = step(state, tiny_batch)
    assert last["loss"].sum() < 0.8 * first["loss"].sum()


def test_interference_against_the_gradients_one_by_one(
    variables, tiny_batch, task_gradients
):
    batch = {**tiny_batch, "has_label": tiny_batch["has_label"].copy()}
    batch["has_label"][:, 0] = False
    _, gradients = task_gradients(batch)
    rows = np.stack([flat(g) for g in gradients]).astype(np.float64)
    tx = optax.chain(optim.weighted_sum(), SGD())
    probe = jax.jit(steps.interference_step(SmallNetwork(), tasks.build()))
    found = probe(start(tx, variables), batch)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(found["norm"], norms, rtol=1e-4, atol=1e-7)
    assert norms[0] == 0
    expected = rows @ rows.T / np.maximum(norms[:, None] * norms[None], 1e-30)
    np.testing.assert_allclose(found["cosine"], expected, atol=1e-4)
    assert (np.diag(found["cosine"])[1:] > 0.999).all()


@pytest.mark.slow
def test_bfloat16_computes_what_float32_does_roughly(random_variables, tiny_batch):
    """The real network without its batch statistics, encoder alone."""
    tx = optax.chain(optim.weighted_sum(), optax.sgd(1e-2))
    moves = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = MultiTaskUNet(
            encoder="vgg13",
            width=1 / 16,
            dense_heads=(),
            norm="none",
            dropout=0.0,
            dtype=dtype,
        )
        variables = {**random_variables(model), "batch_stats": {}}
        step = steps.joint_step(model, tasks.build(["glaucoma"]), tx)
        state, _ = jax.jit(step)(start(tx, variables), tiny_batch)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
        moves[dtype] = flat(state.params) - flat(variables["params"])
    a, b = moves.values()
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosine > 0.95
