"""Four simulated devices give what one gives.

The number of devices is fixed for a whole process, so this file is also a program: run
as a script it trains on four, and prints what the tests compare.
"""

import functools
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import SmallNetwork
from training_fixtures import once

from mtl_jax import files, optim, tasks
from mtl_jax.errors import UserError
from mtl_jax.models import MultiTaskUNet
from mtl_jax.models.layers import BatchNorm
from mtl_jax.training import parallel
from mtl_jax.training import step as steps
from mtl_jax.training.augment import Augmentation
from mtl_jax.training.state import TrainState

# Another process trains on several devices.
pytestmark = pytest.mark.slow

DEVICES, BATCH_SIZE, STEPS, SIZE = 4, 8, 3, 32

# Rows are tasks, columns images; pairs of images share a device. Some devices have no
# label of a task, and in the second batch nobody has one for the cup.
LABELS = np.array(
    [
        [
            (0, 1, 0, 0, 1, 1, 1, 1),
            (1, 1, 1, 1, 0, 0, 0, 0),
            (0, 0, 0, 0, 0, 0, 1, 0),
            (1, 0, 1, 1, 1, 1, 0, 1),
        ],
        [
            (1, 1, 1, 1, 1, 1, 1, 0),
            (0, 0, 0, 1, 0, 0, 0, 0),
            (0, 0, 0, 0, 0, 0, 0, 0),
            (0, 0, 1, 1, 0, 1, 0, 0),
        ],
        [
            (0, 0, 1, 0, 0, 0, 0, 0),
            (1, 0, 1, 1, 1, 1, 1, 1),
            (1, 1, 0, 0, 0, 1, 0, 1),
            (0, 0, 0, 0, 0, 0, 1, 1),
        ],
    ],
    bool,
)


AUGMENT = Augmentation(
    flip_horizontal=True, rotation=20.0, scale=0.1, shift=0.1, colour=0.2
)


def make_batch(seed):
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:SIZE, :SIZE]
    x, y = rng.uniform(10, 22, (2, BATCH_SIZE, 1, 1))
    square = (xs - x) ** 2 + (ys - y) ** 2
    return {
        "image": rng.integers(0, 256, (BATCH_SIZE, SIZE, SIZE, 3), dtype=np.uint8),
        "disc_mask": (square < 50).astype(np.uint8),
        "cup_mask": (square < 15).astype(np.uint8),
        "fovea_xy": rng.uniform(4, 28, (BATCH_SIZE, 2)).astype(np.float32),
        "glaucoma": rng.integers(0, 2, BATCH_SIZE).astype(np.float32),
        "has_label": LABELS[seed % STEPS].T.copy(),
    }


def fresh_state(model, optimizer):
    """A state drawn in NumPy: compiling an initialisation takes longer than training.

    Tracing `init` still shows that it works outside `jax.pmap` for a model that knows
    of its axis.
    """
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        if path[-1].key == "kernel":
            bound = np.sqrt(6 / np.prod(shape.shape[:-1]))
            return rng.uniform(-bound, bound, shape.shape).astype(np.float32)
        start = 1.0 if path[-1].key in ("scale", "var") else 0.0
        noise = rng.uniform(-0.2, 0.2, shape.shape)
        return (start + noise).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=jax.jit(optimizer.init)(variables["params"]),
        key=jax.random.key(7),
    )


def build(axis_name):
    """Everything random is on: dropout and augmentation."""
    model = SmallNetwork(dropout=0.3, axis_name=axis_name)
    # Not Adam, which makes steps of full size of rounding noise: devices that share a
    # batch add up in another order.
    optimizer = optim.independent(optax.sgd(3e-3, momentum=0.9), len(tasks.TASKS))
    step = steps.sequential_step(
        model, tasks.build(), optimizer, axis_name=axis_name, augment=AUGMENT
    )
    evaluation = steps.evaluation_step(model, tasks.build())
    return fresh_state(model, optimizer), step, evaluation


def as_lists(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).tolist(), tree)


def train_without_devices():
    """Plain `jax.jit`: the reference."""
    state, step, evaluation = build(axis_name=None)
    step, history = jax.jit(step), []
    for seed in range(STEPS):
        state, metrics = step(state, make_batch(seed))
        history.append(metrics)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, losses = jax.jit(evaluation)(variables, make_batch(STEPS))
    return as_lists({"history": history, "logits": logits, "losses": losses})


def train_on_all_devices():
    state, step, evaluation = build(parallel.AXIS)
    state, step = parallel.replicate(state), parallel.map_step(step)
    history, spread = [], []
    for seed in range(STEPS):
        state, metrics = step(state, parallel.shard(make_batch(seed)))
        spread.append(
            max(np.ptp(np.asarray(v), axis=0).max() for v in metrics.values())
        )
        history.append(parallel.unreplicate(metrics))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    copies = [np.ptp(np.asarray(x), axis=0).max() for x in jax.tree.leaves(variables)]
    outputs = parallel.map_evaluation(evaluation)(
        variables, parallel.shard(make_batch(STEPS))
    )
    logits, losses = parallel.gather(outputs)
    return as_lists(
        {
            "history": history,
            "logits": logits,
            "losses": losses,
            "spread": [max(spread), max(copies)],
            "step": parallel.unreplicate(state).step,
        }
    )


def real_network_outputs(axis_name):
    """What the real network makes of a batch in training, statistics and dropout on.

    That its layers see the whole batch shows in one pass forward; steps of it would
    take a minute to compile.
    """
    model = MultiTaskUNet(encoder="vgg13", width=1 / 16, axis_name=axis_name)
    state = fresh_state(model, optax.identity())

    def forward(variables, batch):
        return model.apply(
            variables,
            batch["image"] / 255.0,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(3)},
        )

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if axis_name is None:
        logits, updated = jax.jit(forward)(variables, make_batch(0))
    else:
        mapped = jax.pmap(forward, axis_name=axis_name, in_axes=(None, 0))
        shares, updated = mapped(variables, parallel.shard(make_batch(0)))
        logits, updated = parallel.gather(shares), parallel.unreplicate(updated)
    return as_lists({"logits": logits, "updated": updated["batch_stats"]})


# Of batch normalisation: without running averages, and with.
MOMENTA = (None, 0.9)


def normalised(momentum, axis_name):
    """Output and gradients of batch normalisation where the images' means differ."""
    rng = np.random.default_rng(0)
    shape = (BATCH_SIZE, 3, 3, 2)
    x = rng.normal(size=shape) + np.arange(BATCH_SIZE).reshape(-1, 1, 1, 1)
    # Means of many deviations are for the norm that is exact there.
    x += 100 if momentum is None else 0
    features, cotangent = (np.float32(a) for a in (x, rng.normal(size=shape)))
    norm = BatchNorm(momentum, axis_name=axis_name)
    variables = norm.init(jax.random.key(0), features[:1], train=False)

    def apply(features, cotangent):
        def train(params, x):
            return norm.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )

        y, pull_back, updated = jax.vjp(
            train, variables["params"], features, has_aux=True
        )
        of_params, gradient = pull_back(cotangent)
        if axis_name is not None:
            of_params = jax.lax.psum(of_params, axis_name)
        return {"y": y, "gradient": gradient}, {"params": of_params, "updated": updated}

    if axis_name is None:
        return as_lists(jax.jit(apply)(features, cotangent))
    shares = parallel.shard({"x": features, "g": cotangent})
    found, whole = jax.pmap(apply, axis_name=axis_name)(shares["x"], shares["g"])
    return as_lists((parallel.gather(found), parallel.unreplicate(whole)))


def make_own_batches(seed):
    """A batch for each task, on a task axis; labels are missing there, too."""
    own = [make_batch(seed + k) for k in range(len(tasks.TASKS))]
    return {key: np.stack([batch[key] for batch in own], axis=1) for key in own[0]}


def make_broken_batch(seed):
    """The second has a fovea that is not finite, on one device."""
    batch = make_batch(seed)
    if seed == 1:
        batch["fovea_xy"][3] = np.nan
    return batch


def method_losses(
    axis_name, make_batch=make_batch, names=None, wrap=lambda step: step, **options
):
    """Three steps of one method of each kind, or of some.

    Two sequential ones, of tasks and of groups, one of weighted losses, and a joint one
    that needs all of the gradients.
    """
    model = SmallNetwork(dropout=0.3, axis_name=axis_name)
    key = jax.random.key(5)
    sgd = optax.sgd(3e-2, momentum=0.9)
    methods = {
        "independent": optim.independent(sgd, len(tasks.TASKS)),
        "random_grouping": optim.random_grouping(sgd, 2, key),
        "gradnorm": optim.weighted(
            optim.gradnorm_weighting(len(tasks.TASKS), shared=lambda p: "trunk" in p),
            sgd,
        ),
        "pcgrad": optax.chain(optim.pcgrad(key), sgd),
    }
    found = {}
    for name in names or methods:
        optimizer = methods[name]
        state = fresh_state(model, optimizer)
        step = wrap(
            steps.train_step(
                model, tasks.build(), optimizer, axis_name=axis_name, **options
            )
        )
        step = jax.jit(step) if axis_name is None else parallel.map_step(step)
        state = state if axis_name is None else parallel.replicate(state)
        history = []
        for seed in range(STEPS):
            batch = make_batch(seed)
            batch = batch if axis_name is None else parallel.shard(batch)
            state, metrics = step(state, batch)
            history.append(
                metrics if axis_name is None else parallel.unreplicate(metrics)
            )
        found[name] = history
    return as_lists(found)


def all_method_losses(axis_name):
    """Of the methods on shared and own batches, in microbatches, and skipping."""
    return {
        "methods": method_losses(axis_name),
        "own": method_losses(axis_name, make_own_batches, augment=AUGMENT),
        "microbatches": method_losses(
            axis_name, names=["independent", "pcgrad"], accumulate=2
        ),
        "skipping": method_losses(
            axis_name, make_broken_batch, ["pcgrad"], steps.skip_nonfinite
        ),
    }


def trips():
    """What there and back makes of some arrays and keys."""
    tree = {
        "numbers": jnp.arange(6.0).reshape(2, 3),
        "step": jnp.int32(5),
        "typed": jax.random.key(3),
        "raw": jax.random.PRNGKey(4),
    }
    replicas = parallel.replicate(tree)
    back = parallel.unreplicate(replicas)
    batch = make_batch(0)
    shares = parallel.shard(batch)
    same = parallel.gather(parallel.map_evaluation(lambda _, x: x)(tree_of(), shares))
    return {
        "replicas": {k: list(v.shape) for k, v in replicas.items()},
        "back": as_lists({**back, "typed": jax.random.key_data(back["typed"])}),
        "typed_draws": as_lists(jax.random.normal(back["typed"], (3,))),
        "shares": {k: list(v.shape) for k, v in shares.items()},
        "same": all(np.array_equal(same[k], batch[k]) for k in batch),
        "dtypes": {k: str(v.dtype) for k, v in same.items()},
    }


def tree_of():
    return {"params": np.zeros((jax.local_device_count(), 1))}


def refusals():
    answers = {}
    for size in (8, 4, 10, 3):
        try:
            parallel.check_batch_size(size)
            answers[size] = None
        except UserError as error:
            answers[size] = str(error)
    return answers


@pytest.fixture(scope="module")
def runs(shared_dir):
    """What four devices and what one computed, once for all workers."""
    place = shared_dir / "parallel.json"
    with once(place, shared_dir / "parallel.lock") as first:
        if first:
            files.write_json(place, compute())
    return types.SimpleNamespace(**json.loads(place.read_text()))


def compute():
    """Both at the same time."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        f"--xla_force_host_platform_device_count={DEVICES}",
    }
    with subprocess.Popen(
        [sys.executable, __file__],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        one = {
            **train_without_devices(),
            **all_method_losses(None),
            "real": real_network_outputs(None),
            "norms": [normalised(momentum, None) for momentum in MOMENTA],
        }
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return {"one": one, "four": json.loads(out.splitlines()[-1])}


def test_four_devices_were_simulated(runs):
    assert runs.four["devices"] == DEVICES


def test_every_step_has_the_losses_of_one_device(runs):
    for one, four in zip(runs.one["history"], runs.four["history"], strict=True):
        np.testing.assert_allclose(four["loss"], one["loss"], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(four["num_labels"], one["num_labels"])
    # The reference is worth comparing with: losses of labelled tasks, zero of others.
    losses = np.array([metrics["loss"] for metrics in runs.one["history"]])
    np.testing.assert_array_equal(losses == 0, ~LABELS.any(-1))


def test_the_trained_network_has_the_logits_of_one_device(runs):
    for output in ("logits", "losses"):
        for name in tasks.TASKS:
            np.testing.assert_allclose(
                runs.four[output][name], runs.one[output][name], atol=1e-5
            )
    assert np.std(runs.one["logits"]["disc"]) > 1e-3


def test_the_real_network_normalises_and_drops_by_the_whole_batch(runs):
    one, four = runs.one["real"], runs.four["real"]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), four, one
    )
    assert np.std(one["logits"]["glaucoma"]) > 1e-3


@pytest.mark.parametrize("index", range(2), ids=["without averages", "with averages"])
def test_batch_norm_and_its_gradients_are_over_the_whole_batch(runs, index):
    """Without averages more exactly than by the mean of squares, off by some 1e-4."""
    one, four = runs.one["norms"][index], runs.four["norms"][index]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), four, one)
    np.testing.assert_allclose(np.std(one[0]["y"]), 1, atol=1e-5)


def assert_same_histories(runs, batches, method):
    histories = (run[batches][method] for run in (runs.four, runs.one))
    for step, (four, one) in enumerate(zip(*histories, strict=True)):
        assert set(four) == set(one)
        for name in one:
            np.testing.assert_allclose(
                four[name], one[name], rtol=1e-5, atol=1e-5, err_msg=f"{step} {name}"
            )


@pytest.mark.parametrize("batches", ["methods", "own"])
@pytest.mark.parametrize(
    "method", ["independent", "random_grouping", "gradnorm", "pcgrad"]
)
def test_every_kind_of_method_has_the_losses_of_one_device(runs, method, batches):
    """On a shared batch and on batches of each task's own."""
    assert_same_histories(runs, batches, method)


@pytest.mark.parametrize("method", ["independent", "pcgrad"])
def test_microbatches_have_the_losses_of_one_device(runs, method):
    """The same images are in each, so that statistics and dropout are the same."""
    assert_same_histories(runs, "microbatches", method)


def test_all_devices_skip_the_step_that_one_of_them_spoils(runs):
    assert_same_histories(runs, "skipping", "pcgrad")
    history = runs.four["skipping"]["pcgrad"]
    assert [metrics["skipped"] for metrics in history] == [0, 1, 0]
    assert [np.isfinite(m["loss"]).tolist()[3] for m in history] == [True, False, True]
    # The next step is from where the first one ended, not the second.
    whole = runs.four["methods"]["pcgrad"]
    np.testing.assert_allclose(history[0]["loss"], whole[0]["loss"], rtol=1e-6)
    assert np.abs(np.subtract(history[2]["loss"], whole[2]["loss"])).max() > 1e-4


def test_all_devices_have_the_same_state_and_metrics(runs):
    assert runs.four["spread"] == [0, 0]
    assert runs.four["step"] == STEPS


def test_replicas_and_shares_come_back_as_they_were(runs):
    four = runs.four["trips"]
    assert four["replicas"] == {
        "numbers": [DEVICES, 2, 3],
        "step": [DEVICES],
        "typed": [DEVICES],
        "raw": [DEVICES, 2],
    }
    assert four["back"] == {
        "numbers": [[0, 1, 2], [3, 4, 5]],
        "step": 5,
        "typed": jax.random.key_data(jax.random.key(3)).tolist(),
        "raw": jax.random.PRNGKey(4).tolist(),
    }
    # What comes back is a key still.
    draws = jax.random.normal(jax.random.key(3), (3,))
    np.testing.assert_allclose(four["typed_draws"], draws, rtol=1e-6)
    assert four["shares"]["image"] == [DEVICES, 2, SIZE, SIZE, 3]
    assert four["shares"]["glaucoma"] == [DEVICES, 2]
    assert four["same"]
    assert four["dtypes"] == {k: str(v.dtype) for k, v in make_batch(0).items()}


def test_a_batch_that_devices_cannot_share_is_refused_in_one_sentence(runs):
    answers = runs.four["refusals"]
    assert answers["8"] is answers["4"] is None
    for size in ("10", "3"):
        assert f"config.batch_size is {size}," in answers[size]
        assert "multiple of 4." in answers[size]


def test_one_device_takes_any_batch():
    if jax.device_count() > 1:
        pytest.skip("there are several devices")
    for size in (1, 3, 8):
        parallel.check_batch_size(size)
    batch = make_batch(0)
    shares = parallel.shard(batch)
    assert all(share.shape == (1, *batch[k].shape) for k, share in shares.items())
    back = parallel.gather(parallel.map_evaluation(lambda _, x: x)(tree_of(), shares))
    for key in batch:
        np.testing.assert_array_equal(back[key], batch[key])


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "devices": jax.local_device_count(),
                "trips": trips(),
                "refusals": refusals(),
                **all_method_losses(parallel.AXIS),
                "real": real_network_outputs(parallel.AXIS),
                "norms": [normalised(m, parallel.AXIS) for m in MOMENTA],
                **train_on_all_devices(),
            }
        )
    )


def test_only_errors_of_jax_tell_of_a_lost_process():
    lost = jax.errors.JaxRuntimeError("INTERNAL: Gloo AllReduce failed.\nmore")
    assert parallel._failed_exchange(lost) == "INTERNAL: Gloo AllReduce failed"
    own = FileNotFoundError("/runs/Gloo/NCCL/photograph.png")
    assert parallel._failed_exchange(own) is None
    own.__context__ = lost
    assert parallel._failed_exchange(own) == "INTERNAL: Gloo AllReduce failed"
    # By the compiled function's fast path.
    fast = ValueError("UNKNOWN: Gloo AllGather failed: Read error")
    assert parallel._failed_exchange(fast) == str(fast)
    file = ValueError('NOT_FOUND: Error opening "zarr" driver: file "/NCCL_runs/0"')
    assert parallel._failed_exchange(file) is None
    assert parallel._failed_exchange(jax.errors.JaxRuntimeError("a bug")) is None
