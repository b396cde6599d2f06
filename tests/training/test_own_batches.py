"""Steps in which each task has a batch of its own (`config.data.batches`)."""

import csv
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import SmallNetwork
from training_fixtures import write_photographs

from mtl_jax import losses, optim, tasks, workdirs
from mtl_jax.data import folder
from mtl_jax.errors import UserError
from mtl_jax.training import parallel
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState
from mtl_jax.training.watch import Watch

pytest_plugins = ("training_fixtures",)

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


@pytest.mark.parametrize(
    # Momentum of the first step would move a head that takes part in a step of its own.
    "optimizer",
    [optim.independent(SGD(), 4), optim.random_grouping(optax.sgd(0.05), 1, KEY)],
    ids=["independent", "vanilla"],
)
def test_a_task_whose_own_batch_has_no_label_is_left_out(optimizer, variables, batches):
    """An augmentation loses foveas. Labels in other tasks' batches do not count."""
    first, second = map(on_task_axis, batches)
    has_label = second["has_label"].copy()
    has_label[:, 3, 3] = False
    assert has_label[:, :3, 3].any()
    step = jax.jit(steps.train_step(SmallNetwork(), tasks.build(), optimizer))
    state, _ = step(start(optimizer, variables), first)
    after, metrics = step(state, {**second, "has_label": has_label})
    np.testing.assert_array_equal(metrics["num_labels"], [4, 4, 4, 0])
    np.testing.assert_array_equal(metrics["loss"] > 0, [True, True, True, False])
    jax.tree.map(
        np.testing.assert_array_equal,
        after.params["head_fovea"],
        state.params["head_fovea"],
    )


def test_every_example_of_every_task_has_a_random_stream(variables, batches):
    """The augmentation is given the place of an example and its task."""

    def augment(key, batch, index):
        assert batch["image"].shape == (16, 32, 32, 3)
        assert batch["has_label"].shape == (16, 4)
        # What an augmentation loses is no label any more.
        has_label = batch["has_label"] & (index != 7)[:, None]
        dimmed = batch["image"] * (index / 16)[:, None, None, None]
        return {**batch, "image": dimmed, "has_label": has_label}

    batch = on_task_axis(batches[0])
    place = np.arange(16).reshape(4, 4)
    by_hand = {
        **batch,
        "image": np.float32(
            batch["image"] / 255.0 * (place / 16)[..., None, None, None]
        ),
        "has_label": batch["has_label"] & (place != 7)[..., None],
    }
    state, history = take_steps(
        METHODS["independent"](), variables, [batch], augment=augment
    )
    expected, told = take_steps(METHODS["independent"](), variables, [by_hand])
    assert_close((state.params, history), (expected.params, told))
    np.testing.assert_array_equal(history[0]["num_labels"], [4, 4, 4, 3])


def test_dropout_is_that_of_a_shared_batch(variables, tiny_batch):
    """Tasks that step one by one drop the same elements, each its own."""
    own = on_task_axis([tiny_batch] * 4)
    found = []
    for batch in (tiny_batch, own):
        optimizer = METHODS["independent"]()
        step = steps.train_step(SmallNetwork(dropout=0.4), tasks.build(), optimizer)
        found.append(jax.jit(step)(start(optimizer, variables), batch))
    (shared, told), (state, metrics) = found
    assert_close((state.params, metrics), (shared.params, told))


def test_interference_of_gradients_on_own_batches(variables, batches, gradient_of):
    own = batches[0]
    batch_stats, rows = variables["batch_stats"], []
    for k in range(4):
        (_, batch_stats), gradient = gradient_of(
            k, variables["params"], batch_stats, own[k]
        )
        rows.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]))
    rows = np.array(rows, np.float64)
    probe = jax.jit(steps.interference_step(SmallNetwork(), tasks.build()))
    found = probe(start(METHODS["independent"](), variables), on_task_axis(own))
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(found["norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(
        found["cosine"], rows @ rows.T / np.outer(norms, norms), atol=1e-4
    )


def test_batches_gathered_from_records(variables, batches):
    """Of one batch for all tasks [B], and of each task's own [B, N], in any order."""
    own, size = batches[0], len(batches[0][0]["image"])
    records = {key: np.concatenate([one[key] for one in own]) for key in own[0]}
    rng = np.random.default_rng(0)
    optimizer = METHODS["independent"]()
    step = steps.train_step(SmallNetwork(), tasks.build(), optimizer)
    for shape in ((size,), (size, 4)):
        index = rng.permutation(4 * size)[: math.prod(shape)].reshape(shape)
        batch = {key: values[index] for key, values in records.items()}
        expected = jax.jit(step)(start(optimizer, variables), batch)
        found = jax.jit(steps.from_records(step))(
            start(optimizer, variables), {"index": index}, records
        )
        assert_close((found[0].params, found[1]), (expected[0].params, expected[1]))


@pytest.fixture
def passes():
    """A network that notes the heads and the image numbers of each pass it makes."""
    made = []

    class Noting(SmallNetwork):
        def __call__(self, images, *, heads=NAMES, train=False):
            jax.debug.callback(
                lambda pixels: made.append((tuple(heads), set(np.rint(pixels * 255)))),
                images[:, 0, 0, 0],
            )
            return super().__call__(images, heads=heads, train=train)

    return Noting(axis_name=parallel.AXIS), made


def mapped_step(model, variables):
    """Makes one step of MTL-IO with a batch, mapped as the training maps it."""
    optimizer = METHODS["independent"]()
    step = steps.train_step(model, tasks.build(), optimizer, axis_name=parallel.AXIS)
    mapped = parallel.map_step(step, jax.devices()[:1])

    def run(batch):
        # A step consumes its state.
        state = jax.tree.map(lambda x: x[None], start(optimizer, variables))
        jax.block_until_ready(mapped(state, {k: v[None] for k, v in batch.items()}))
        jax.effects_barrier()

    return run


def numbered(batch, first):
    images = np.array(batch["image"])
    images[:, 0, 0, 0] = first + np.arange(len(images))
    return {**batch, "image": images}


def test_images_pass_along_the_route_of_their_own_task_alone(
    passes, variables, batches
):
    """Four own batches, of the images 0 to 3, 4 to 7, and so on."""
    model, made = passes
    own = [numbered(batch, 4 * k) for k, batch in enumerate(batches[0])]
    mapped_step(model, variables)(on_task_axis(own))
    images = [{4.0 * k, 4.0 * k + 1, 4.0 * k + 2, 4.0 * k + 3} for k in range(4)]
    assert made == [
        (NAMES[:1], images[0]),
        *((NAMES[1:], numbers) for numbers in images[1:]),
    ]


def test_a_task_without_a_label_in_a_shared_batch_makes_no_pass(
    passes, variables, tiny_batch
):
    model, made = passes
    run = mapped_step(model, variables)
    for there in ([], [0], [3], [0, 2], [0, 1, 2, 3]):
        made.clear()
        has_label = np.zeros((4, 4), bool)
        has_label[1, there] = True
        run({**tiny_batch, "has_label": has_label})
        heads = [NAMES[1:] if k else NAMES[:1] for k in there]
        assert [passed for passed, _ in made] == heads


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_task_axis_of_another_length_is_refused(number, variables, tiny_batch):
    batch = on_task_axis([tiny_batch] * number)
    step = steps.train_step(SmallNetwork(), tasks.build(), METHODS["independent"]())
    with pytest.raises(AssertionError, match="4"):
        jax.eval_shape(step, start(METHODS["independent"](), variables), batch)


@pytest.fixture(scope="module")
def partial_data(tmp_path_factory):
    """Four training photographs with a disc, and another one with a fovea."""
    place = tmp_path_factory.mktemp("partial")
    write_photographs(place / "photographs", complete=True)
    manifest = place / "photographs" / "manifest.csv"
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows[:5]):
        absent = ("disc_mask",) if i == 4 else ("fovea_x", "fovea_y")
        row.update(dict.fromkeys(absent, ""))
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    version_dir = folder.build(
        place / "data",
        manifest.parent,
        image_size=32,
        shape="stretch",
        accept=["fovea_far"],
    )
    return str(place / "data"), f"fundus_folder/{version_dir.parent.name}"


def read(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def test_a_run_with_partial_labels_resumes_to_the_same_numbers(
    make_config, partial_data, compiled, tmp_path, monkeypatch
):
    """Stopped in the third of three epochs of two steps."""
    data_dir, dataset = partial_data
    config = make_config(
        {
            "data.data_dir": data_dir,
            "data.dataset": dataset,
            "data.batches": "per_task",
            "augmentation.flip_horizontal": True,
        },
        tasks=("disc", "fovea"),
        batch_size=2,
        num_epochs=3,
        validate_every=1,
    )
    workdirs.train(config, tmp_path / "whole")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    training = [row for row in map(json.loads, lines) if "train/loss_disc" in row]
    assert [row["step"] for row in training] == [2, 4, 6]
    for row in training:
        # Both tasks learn at every step, of two images each.
        assert row["train/loss_disc"] > 0 < row["train/loss_fovea"]
        product = row["train/seconds_per_step"] * row["train/images_per_second"]
        assert product == pytest.approx(4)
    add = Watch.add

    def stop(self, step, metrics):
        if step == 5:
            raise KeyboardInterrupt
        add(self, step, metrics)

    monkeypatch.setattr(Watch, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        workdirs.train(config, tmp_path / "run")
    monkeypatch.undo()
    workdirs.train(config, tmp_path / "run", resume=True)
    assert read(tmp_path / "run") == read(tmp_path / "whole")


def test_a_run_whose_tasks_have_no_training_image_is_refused(
    make_config, folder_data, tmp_path
):
    """The photographs have discs alone."""
    data_dir, dataset = folder_data
    fields = {"data.data_dir": data_dir, "data.dataset": dataset}
    config = make_config(fields, tasks=("cup", "fovea"))
    with pytest.raises(UserError, match="split train has no image .* cup, fovea;"):
        workdirs.train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
