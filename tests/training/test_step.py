import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import SmallNetwork

from mtl_jax import methods, optim, tasks
from mtl_jax.models import MultiTaskUNet
from mtl_jax.training import step as steps
from mtl_jax.training.augment import Augmentation
from mtl_jax.training.gradients import task_gradients
from mtl_jax.training.state import TrainState

NAMES = tuple(tasks.TASKS)
DISC, CUP, FOVEA = 1, 2, 3

# A bias in front of batch normalisation has no gradient but rounding noise, which Adam
# would blow up to steps of full size: `eps` keeps two computations comparable.
ADAM = functools.partial(optax.adam, 1e-3, eps=1e-2)


def train_state(model, optimizer, variables, seed=0):
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        key=jax.random.key(seed),
    )


def small(random_variables, chosen=NAMES, dropout=0.0, augment=None):
    model = SmallNetwork(dropout)
    optimizer = optim.independent(ADAM(), len(chosen))
    step = steps.sequential_step(model, tasks.build(chosen), optimizer, augment=augment)
    return jax.jit(step), train_state(model, optimizer, random_variables(model))


def with_labels(batch, labels):
    """The batch with `has_label` [4, B]: one row per task."""
    return {**batch, "has_label": np.array(labels, bool).T}


def assert_trees_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def without_key(state):
    return state.replace(key=None)


def task_rows(opt_state, index):
    return jax.tree.map(lambda leaf: leaf[index], opt_state)


def moved(old, new):
    return any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    )


@pytest.fixture(scope="module")
def whole(random_variables):
    """A network, its compiled step and evaluation, and a state to start from."""
    model, built = SmallNetwork(), tasks.build()
    optimizer = optim.independent(ADAM(), len(NAMES))
    return types.SimpleNamespace(
        model=model,
        step=jax.jit(steps.sequential_step(model, built, optimizer)),
        evaluate=jax.jit(steps.evaluation_step(model, built)),
        state=train_state(model, optimizer, random_variables(model)),
    )


@pytest.fixture(scope="module")
def stepped(whole, tiny_batch):
    """A state whose moving averages are no longer zero."""
    return whole.step(whole.state, tiny_batch)[0]


def log_sigmoid(x):
    return -jnp.logaddexp(0.0, -x)


def losses_by_hand(name, logits, batch):
    """The method's losses per image, written out once more."""
    if name == "glaucoma":
        signed = logits * (2 * batch["glaucoma"] - 1)
        return -((1 - jnp.exp(log_sigmoid(signed))) ** 2) * log_sigmoid(signed)
    if name in ("disc", "cup"):
        sign = 2.0 * batch[f"{name}_mask"] - 1
        return -log_sigmoid(logits * sign).mean((1, 2))
    height, width = logits.shape[1:]
    rows, columns = jnp.mgrid[:height, :width]
    x, y = batch["fovea_xy"].T[..., None, None]
    variance = 50 * (width / 256) ** 2
    target = jnp.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * variance))
    return jnp.abs(jax.nn.sigmoid(logits) - target).mean((1, 2))


def gradient_by_hand(model, names):
    """Gradient of the losses of one route, weighted, so that one compilation serves."""

    def loss(params, batch_stats, batch, weights):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch["image"] / 255.0,
            heads=list(names),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        total = 0.0
        for weight, name in zip(weights, names, strict=True):
            labelled = batch["has_label"][:, NAMES.index(name)].astype(jnp.float32)
            values = losses_by_hand(name, logits[name], batch)
            total += weight * (values * labelled).sum() / labelled.sum()
        return total, updated["batch_stats"]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_two_steps_are_a_loop_over_tasks_with_optimizers_of_their_own(
    whole, make_batch
):
    batches = [
        with_labels(
            make_batch(seed=11),
            [(1, 1, 1, 1), (1, 0, 1, 1), (0, 1, 1, 0), (1, 0, 0, 0)],
        ),
        with_labels(
            make_batch(seed=12),
            [(0, 1, 0, 1), (1, 1, 1, 1), (0, 0, 1, 0), (1, 1, 0, 1)],
        ),
    ]
    glaucoma = gradient_by_hand(whole.model, NAMES[:1])
    dense = gradient_by_hand(whole.model, NAMES[1:])
    one_hot = np.eye(3, dtype=np.float32)
    visits = [(glaucoma, np.ones(1, np.float32)), *((dense, row) for row in one_hot)]

    params, batch_stats = whole.state.params, whole.state.batch_stats
    # One call per task of an ordinary optax optimizer.
    update, apply_updates = jax.jit(ADAM().update), jax.jit(optax.apply_updates)
    own = [ADAM().init(params) for _ in NAMES]
    state = whole.state
    for batch in batches:
        expected = []
        for k, (gradient_of, weights) in enumerate(visits):
            (loss, batch_stats), gradient = gradient_of(
                params, batch_stats, batch, weights
            )
            updates, own[k] = update(gradient, own[k], params)
            params = apply_updates(params, updates)
            expected.append(loss)
        state, metrics = whole.step(state, batch)
        np.testing.assert_allclose(metrics["loss"], expected, atol=1e-5)
        np.testing.assert_array_equal(
            metrics["num_labels"], batch["has_label"].sum(axis=0)
        )

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5),
        state.batch_stats,
        batch_stats,
    )
    last = make_batch(seed=13)
    ours, _ = whole.evaluate(
        {"params": state.params, "batch_stats": state.batch_stats}, last
    )
    theirs, _ = whole.evaluate({"params": params, "batch_stats": batch_stats}, last)
    start, _ = whole.evaluate(
        {"params": whole.state.params, "batch_stats": whole.state.batch_stats}, last
    )
    for name in NAMES:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
        assert np.abs(ours[name] - start[name]).max() > 1e-3
    assert state.step == 2


def test_tasks_without_a_label_in_the_batch_are_left_out(whole, stepped, tiny_batch):
    batch = with_labels(
        tiny_batch, [(1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)]
    )
    after, metrics = whole.step(stepped, batch)
    for head in ("head_cup", "head_fovea"):
        assert_trees_equal(after.params[head], stepped.params[head])
    for task in (CUP, FOVEA):
        before = task_rows(stepped.opt_state, task)
        assert moved(before, jax.tree.map(np.zeros_like, before))
        assert_trees_equal(task_rows(after.opt_state, task), before)
    for part in ("trunk", "decoder", "head_glaucoma", "head_disc"):
        assert moved(stepped.params[part], after.params[part])
    np.testing.assert_array_equal(metrics["num_labels"], [2, 1, 0, 0])
    np.testing.assert_array_equal(metrics["loss"][CUP:], 0)
    assert (metrics["loss"][:CUP] > 0).all()


def test_a_batch_without_any_label_changes_nothing_but_the_step(
    whole, stepped, tiny_batch
):
    batch = with_labels(tiny_batch, np.zeros((4, 4)))
    after, metrics = whole.step(stepped, batch)
    assert after.step == stepped.step + 1
    assert_trees_equal(
        without_key(after), without_key(stepped).replace(step=after.step)
    )
    np.testing.assert_array_equal(metrics["loss"], 0)
    np.testing.assert_array_equal(metrics["num_labels"], 0)


def test_targets_of_unlabelled_images_have_no_influence(whole, stepped, tiny_batch):
    labels = np.array([(1, 0, 1, 1), (0, 1, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0)], bool)
    batch = with_labels(tiny_batch, labels)
    rubbish = {key: np.array(value) for key, value in batch.items()}
    rubbish["glaucoma"][~labels[0]] = 1e6
    rubbish["disc_mask"][~labels[DISC]] = 200
    rubbish["cup_mask"][~labels[CUP]] = 77
    rubbish["fovea_xy"][~labels[FOVEA]] = (-1e20, 1e9)
    after, metrics = whole.step(stepped, batch)
    spoilt_after, spoilt_metrics = whole.step(stepped, rubbish)
    assert_trees_equal(without_key(spoilt_after), without_key(after))
    assert_trees_equal(spoilt_metrics, metrics)
    # Pixels of an image count without its labels: they are part of the statistics.
    rubbish["image"][1] = 0
    other, _ = whole.step(stepped, rubbish)
    assert moved(other.batch_stats, after.batch_stats)


def test_metrics_are_losses_and_label_counts_by_task(whole, tiny_batch):
    _, metrics = whole.step(whole.state, tiny_batch)
    assert set(metrics) == {"loss", "num_labels"}
    assert metrics["loss"].shape == metrics["num_labels"].shape == (4,)
    assert metrics["loss"].dtype == jnp.float32
    assert jnp.issubdtype(metrics["num_labels"].dtype, jnp.integer)
    np.testing.assert_array_equal(metrics["num_labels"], 4)


def test_the_loss_goes_down(whole, tiny_batch):
    state, first = whole.step(whole.state, tiny_batch)
    for _ in range(25):
        state, last = whole.step(state, tiny_batch)
    assert (last["loss"] < first["loss"]).all()
    # The key never changes; only `step` makes the difference between steps.
    assert state.step == 26
    assert jnp.array_equal(
        jax.random.key_data(state.key), jax.random.key_data(whole.state.key)
    )


@pytest.mark.parametrize("norm", ["group", "none"])
def test_networks_without_running_averages_train(norm, random_variables, tiny_batch):
    model = MultiTaskUNet(
        encoder="vgg13", width=1 / 16, norm=norm, dropout=0.0, dense_heads=()
    )
    optimizer = optim.independent(ADAM(), 1)
    step = jax.jit(steps.sequential_step(model, tasks.build(["glaucoma"]), optimizer))
    state = train_state(model, optimizer, random_variables(model))
    history = []
    for _ in range(5):
        state, metrics = step(state, tiny_batch)
        history.append(float(metrics["loss"][0]))
    assert history[-1] < history[0]
    assert state.batch_stats == {}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def gradients_of(model, batch, chosen=NAMES):
    unit = {**batch, "image": steps.as_unit_range(batch["image"])}
    gradients = task_gradients(
        model, tasks.build(chosen), unit, jax.random.key(0), None
    )
    return gradients._replace(
        of_task=jax.jit(gradients.of_task), of_group=jax.jit(gradients.of_group)
    )


def test_a_group_has_the_gradient_of_the_sum_of_its_losses(
    random_variables, tiny_batch
):
    model = SmallNetwork()
    batch = with_labels(
        tiny_batch, [(1, 0, 1, 1), (0, 1, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0)]
    )
    variables = random_variables(model)
    point = variables["params"], variables["batch_stats"]
    by_hand = gradient_by_hand(model, NAMES)
    of_group = gradients_of(model, batch).of_group
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for mask in [(1, 0, 0, 0), (0, 1, 0, 1), (1, 1, 1, 1)]:
        (total, stats), expected = by_hand(*point, batch, np.array(mask, np.float32))
        (values, batch_stats), gradient = of_group(np.array(mask, bool), *point)
        close(values.sum(), total)
        np.testing.assert_array_equal(values > 0, mask)
        jax.tree.map(close, (gradient, batch_stats), (expected, stats))


def test_a_group_of_one_is_that_task(random_variables, tiny_batch):
    model = SmallNetwork(dropout=0.5)
    variables = random_variables(model)
    point = variables["params"], variables["batch_stats"]
    gradients = gradients_of(model, tiny_batch, NAMES[:2])
    assert gradients.num_tasks == 2
    for index in range(2):
        (loss, stats), gradient = gradients.of_task(index, *point)
        (values, group_stats), group_gradient = gradients.of_group(
            np.arange(2) == index, *point
        )
        np.testing.assert_allclose(values, loss * np.eye(2)[index], rtol=1e-6)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
            (group_stats, group_gradient),
            (stats, gradient),
        )


@pytest.mark.parametrize(("chosen", "branches"), [(NAMES, 2), (["cup", "fovea"], 1)])
def test_a_group_makes_one_forward_pass(chosen, branches, random_variables, tiny_batch):
    variables = random_variables(SmallNetwork())
    program = jax.make_jaxpr(gradients_of(SmallNetwork(), tiny_batch, chosen).of_group)(
        np.ones(len(chosen), bool), variables["params"], variables["batch_stats"]
    )
    # In each branch: the convolution, and its kernel's gradient.
    assert str(program).count("conv_general_dilated[") == 2 * branches


@pytest.mark.parametrize(
    "name",
    [
        "uncertainty_weighting",
        "dwa",
        "famo",
        "geometric_mean",
        "imtl_l",
        "stch",
        "cosmos",
        "pbi",
        "random_loss_weighting",
    ],
)
def test_weights_of_the_losses_cost_one_backward_pass(
    name, random_variables, tiny_batch
):
    setting = methods.Setting(
        tx=ADAM(),
        num_tasks=len(NAMES),
        key=jax.random.key(0),
        last_shared="trunk/kernel",
        fields={k: field.default for k, field in methods.fields().items()},
    )
    optimizer = methods.METHODS[name].create(setting)
    model = SmallNetwork()
    step = steps.train_step(model, tasks.build(), optimizer)
    state = train_state(model, optimizer, random_variables(model))
    program = jax.make_jaxpr(step)(state, tiny_batch)
    # The convolution, and its kernel's gradient.
    assert str(program).count("conv_general_dilated[") == 2


def test_random_grouping_trains(random_variables, tiny_batch):
    model = SmallNetwork()
    optimizer = optim.random_grouping(optax.adam(1e-2), 2, jax.random.key(5))
    step = jax.jit(steps.sequential_step(model, tasks.build(), optimizer))
    state = train_state(model, optimizer, random_variables(model))
    state, first = step(state, tiny_batch)
    for _ in range(20):
        state, last = step(state, tiny_batch)
    assert (last["loss"] < first["loss"]).all()


def test_as_unit_range_divides_uint8_only():
    bright = steps.as_unit_range(jnp.array([0, 51, 255], jnp.uint8))
    assert bright.dtype == jnp.float32
    np.testing.assert_allclose(bright, [0, 0.2, 1], rtol=1e-6)
    floats = jnp.array([0.0, 0.7, 1.0])
    np.testing.assert_array_equal(steps.as_unit_range(floats), floats)


def test_randomness_depends_on_key_and_step_alone(random_variables, tiny_batch):
    augment = Augmentation(flip_horizontal=True, rotation=20.0, brightness=0.3)
    step, state = small(random_variables, ["disc"], dropout=0.5, augment=augment)
    first, again = step(state, tiny_batch), step(state, tiny_batch)
    assert_trees_equal(without_key(first[0]), without_key(again[0]))
    assert_trees_equal(first[1], again[1])
    other_key = step(state.replace(key=jax.random.key(1)), tiny_batch)
    other_step = step(state.replace(step=state.step + 1), tiny_batch)
    for other in (other_key, other_step):
        assert np.isfinite(other[1]["loss"]).all()
        assert np.abs(other[1]["loss"] - first[1]["loss"]).max() > 1e-4


@pytest.fixture(scope="module")
def two_tasks(random_variables):
    """A step whose augmentation loses every fovea.

    The tasks' places differ from their columns of `has_label`.
    """

    def augment(key, batch, index):
        assert batch["image"].dtype == jnp.float32
        has_label = jnp.asarray(batch["has_label"]).at[:, FOVEA].set(index >= 100)
        return {**batch, "has_label": has_label}

    return small(random_variables, ["disc", "fovea"], augment=augment)


def test_augmentation_comes_before_the_labels_are_counted(two_tasks, tiny_batch):
    step, state = two_tasks
    batch = with_labels(tiny_batch, [(0, 0, 0, 0), (1, 0, 1, 1), (1, 1, 1, 1), [1] * 4])
    after, metrics = step(state, batch)
    np.testing.assert_array_equal(metrics["num_labels"], [3, 0])
    assert_trees_equal(after.params["head_fovea"], state.params["head_fovea"])
    assert moved(after.params["head_disc"], state.params["head_disc"])


def test_float_images_are_what_uint8_images_become(two_tasks, tiny_batch):
    step, state = two_tasks
    floats = {**tiny_batch, "image": tiny_batch["image"].astype(np.float32) / 255}
    (a, a_metrics), (b, b_metrics) = step(state, tiny_batch), step(state, floats)
    np.testing.assert_allclose(a_metrics["loss"], b_metrics["loss"], atol=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), a.params, b.params
    )
    assert moved(a.params, state.params)


def test_evaluation_gives_logits_and_losses_per_image(random_variables, tiny_batch):
    model = SmallNetwork(dropout=0.5)
    variables = random_variables(model)
    evaluate = jax.jit(steps.evaluation_step(model, tasks.build()))
    logits, values = evaluate(variables, tiny_batch)
    expected = model.apply(variables, tiny_batch["image"] / np.float32(255))
    assert set(logits) == set(values) == set(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(logits[name], expected[name], atol=1e-5)
        by_hand = losses_by_hand(name, logits[name], tiny_batch)
        np.testing.assert_allclose(values[name], by_hand, rtol=1e-4, atol=1e-6)


def test_evaluation_of_images_alone_gives_no_losses(tiny_batch):
    model = SmallNetwork()
    images = {"image": tiny_batch["image"]}
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    logits, values = jax.eval_shape(
        steps.evaluation_step(model, tasks.build()), variables, images
    )
    assert set(logits) == set(NAMES)
    assert values == {}


def test_a_created_state_is_fresh():
    model = SmallNetwork()
    optimizer = optim.independent(ADAM(), 4)
    state, same, other = (
        steps.create_train_state(model, optimizer, jax.random.key(seed, impl="rbg"))
        for seed in (0, 0, 1)
    )
    assert state.step == 0
    assert state.step.dtype == jnp.int32
    assert set(state.batch_stats) == {"norm"}
    assert_trees_equal(state.params, same.params)
    assert moved(state.params["trunk"]["kernel"], other.params["trunk"]["kernel"])
    for moments in (state.opt_state[0].mu, state.opt_state[0].nu):
        shapes = jax.tree.map(lambda leaf: leaf.shape[1:], moments)
        assert shapes == jax.tree.map(lambda leaf: leaf.shape, state.params)
        assert all(
            leaf.shape[0] == 4 and not leaf.any() for leaf in jax.tree.leaves(moments)
        )
    keys = [jax.random.key_data(s.key).tolist() for s in (state, other)]
    assert (
        keys[0]
        != keys[1]
        != jax.random.key_data(jax.random.key(1, impl="rbg")).tolist()
    )
