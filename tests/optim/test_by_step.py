import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from mtl_jax import configuration, optim
from mtl_jax.training.step import optimizer_metrics

DEEPEST = {"encoder": {"block5_conv3": {"conv": {"kernel": jnp.ones(3)}}}}


def by_path(params):
    return params["encoder"]["block5_conv3"]["conv"]["kernel"], params["head"]


def updates(config, num_steps, steps_per_epoch):
    """Parameters along a few steps of the config's method on quadratic losses."""
    num_tasks = len(config.tasks)
    centres = jnp.arange(1.0, num_tasks + 1) + 1

    def loss(k, params):
        encoder, head = by_path(params)
        return jnp.sum((encoder - centres[k]) ** 2) + jnp.sum((head - centres[k]) ** 2)

    optimizer = configuration.build(config).optimizer(steps_per_epoch)
    params = {**DEEPEST, "head": jnp.ones(2)}

    def sequential(params, state):
        losses = [lambda w, carry, k=k: (loss(k, w), carry) for k in range(num_tasks)]
        # The last two tasks are annotated nowhere: their own states do not count on.
        active = jnp.arange(num_tasks) < 2
        params, state, _, _ = optimizer.update(
            optim.task_gradients(losses), state, params, active=active
        )
        return params, state

    def joint(params, state):
        rows = [jax.value_and_grad(lambda w, k=k: loss(k, w))(params) for k in range(4)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(g for _, g in rows))
        tx = optax.with_extra_args_support(optimizer)
        change, state = tx.update(
            stacked, state, params, task_losses=jnp.stack([v for v, _ in rows])
        )
        return optax.apply_updates(params, change), state

    is_sequential = isinstance(optimizer, optim.SequentialOptimizer)
    step = jax.jit(sequential if is_sequential else joint)
    state = optimizer.init(params)
    trace = [params]
    for _ in range(num_steps):
        params, state = step(params, state)
        trace.append(params)
    return trace


# Each way of making steps; other methods differ from these in the tasks' weights alone.
METHODS = (
    "independent",
    "alternating",
    "vanilla",
    "gradnorm",
    "pcgrad",
    "per_task",
    "random_grouping",
)


def make(method, **fields):
    config = default.get_config()
    config.method.name = method
    config.optimizer.learning_rate = 1e-2
    for name, value in fields.items():
        config.optimizer[name] = value
    configuration.check(config)
    return config


@pytest.mark.parametrize("method", METHODS)
def test_frozen_for_the_first_epochs(method):
    trace = updates(make(method, freeze_encoder_epochs=2.0), 8, steps_per_epoch=3)
    for before, after in zip(trace[:6], trace[1:7], strict=True):
        np.testing.assert_array_equal(by_path(after)[0], by_path(before)[0])
        assert (by_path(after)[1] != by_path(before)[1]).all()
    # Afterwards all moves.
    assert (by_path(trace[7])[0] != by_path(trace[6])[0]).all()
    assert (by_path(trace[8])[0] != by_path(trace[7])[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_learning_rate_scale(method):
    plain = updates(make(method), 1, steps_per_epoch=3)
    scaled = updates(make(method, encoder_learning_rate_scale=0.25), 1, 3)
    moved = [np.array(by_path(trace[1])[0]) - 1 for trace in (scaled, plain)]
    # Adam's first step has the size of the learning rate whatever the gradient's.
    np.testing.assert_allclose(moved[0], 0.25 * moved[1], rtol=2e-2)
    np.testing.assert_allclose(by_path(scaled[1])[1], by_path(plain[1])[1], rtol=1e-3)


def test_by_default_the_state_is_the_methods_own():
    state = configuration.build(make("vanilla")).optimizer(3).init(DEEPEST)
    assert not isinstance(state, optim.ByStepState)


@pytest.mark.parametrize(
    ("method", "metric"), [("gradnorm", "weights"), ("pcgrad", "conflicts")]
)
def test_metrics_of_the_method_inside_are_found(method, metric):
    optimizer = configuration.build(make(method, freeze_encoder_epochs=1)).optimizer(3)
    state = optimizer.init({**DEEPEST, "head": jnp.ones(2)})
    assert list(optimizer_metrics(state)) == [metric]


def test_count_of_outer_updates():
    """Whatever the schedules inside count: alternation's state steps N times."""
    seen = optim.by_step(
        lambda count: optim.alternating(optax.sgd(1.0 * count.astype(float)))
    )
    losses = [lambda w, carry: (w.sum(), carry)] * 3
    w, state = jnp.zeros(1), seen.init(jnp.zeros(1))
    for step in range(3):
        new, state, _, _ = seen.update(optim.task_gradients(losses), state, w)
        assert float((w - new)[0]) == 3 * step
        w = new
    assert int(state.count) == 3
