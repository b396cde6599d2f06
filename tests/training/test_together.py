"""Several runs in one program: each comes to what it comes to alone."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import SmallNetwork

from mtl_jax import configuration, tasks
from mtl_jax.data import pipeline
from mtl_jax.evaluation import trained
from mtl_jax.training import loop, together
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState

pytest_plugins = ("training_fixtures",)

TIMES = ("train/seconds_per_step", "train/images_per_second")
RATES, SEEDS = (0.1, 0.03, 0.003), (5, 6, 7)


def of_runs(config):
    """The configs of three runs: other folds, seeds and learning rates."""
    configs = []
    for fold, (seed, rate) in enumerate(zip(SEEDS, RATES, strict=True)):
        one = configuration.from_json(configuration.to_json(config))
        one.data.fold, one.data.num_folds = str(fold), 3
        one.seed, one.optimizer.learning_rate = seed, rate
        configs.append(one)
    return configs


def lines(workdir):
    """What a run logged but for its times."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def assert_logs_agree(one, other, **tolerance):
    for a, b in zip(lines(one), lines(other), strict=True):
        assert [*a] == [*b]
        for name, value in b.items():
            assert a[name] == value or a[name] == pytest.approx(value, **tolerance)


@pytest.mark.parametrize("method", ["independent", "pcgrad"])
def test_steps_of_several_runs(method, make_config, random_variables, make_batch):
    """Other weights, learning rates, orders of the tasks, and labels in each run."""
    config = make_config({"method.name": method, "optimizer.name": "sgd"})
    model, pieces = SmallNetwork(dropout=0.3), tasks.build()
    configs = of_runs(config)
    keys = [configuration.method_key(one) for one in configs]
    states = []
    for index, one in enumerate(configs):
        variables = random_variables(model)
        params = jax.tree.map(lambda x, i=index: x * (1 + i / 8), variables["params"])
        optimizer = configuration.create_optimizer(one, 1)
        states.append(
            TrainState(
                step=jnp.zeros((), jnp.int32),
                params=params,
                batch_stats=variables["batch_stats"],
                opt_state=optimizer.init(params),
                key=jax.random.key(index),
            )
        )
    batches = [[make_batch(seed=3 * t + i) for i in range(3)] for t in range(3)]
    # In the second run nobody has annotated the cup.
    for at in batches:
        at[1] = {**at[1], "has_label": at[1]["has_label"] & (np.arange(4) != 2)}

    def step(key, state, batch):
        optimizer = configuration.create_optimizer(config, 1, key)
        return steps.train_step(model, pieces, optimizer)(state, batch)

    alone, every = jax.jit(step), jax.jit(together.over_runs(step, 3))
    joined = together.stack(states)
    for at in batches:
        metrics = [None] * 3
        for i in range(3):
            states[i], metrics[i] = alone(keys[i], states[i], at[i])
        joined, found = every(together.stack(keys), joined, together.stack(at))
        for i in range(3):
            own = together.part(found, i, 3)
            for name, values in metrics[i].items():
                np.testing.assert_allclose(own[name], values, rtol=1e-5, atol=1e-6)
    for i in range(3):
        for a, b in zip(
            jax.tree.leaves(together.part(joined.params, i, 3)),
            jax.tree.leaves(states[i].params),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def config(make_config):
    """The encoder alone."""
    # With running averages that move slowly, a network can be spoilt unnoticed by the
    # losses of its training.
    fields = {"optimizer.name": "sgd", "model.norm_momentum": 0.99}
    return make_config(fields, tasks=("glaucoma",), num_epochs=3, validate_every=1)


@pytest.fixture(scope="module")
def joined(config, compiled, tmp_path_factory):
    """Workdirs of three runs of one program."""
    workdirs = [tmp_path_factory.mktemp("joined") / name for name in "abc"]
    assert loop.train_together(of_runs(config), workdirs) == {}
    return workdirs


@pytest.mark.slow
def test_runs_of_one_program_are_ordinary_runs(config, joined, tmp_path):
    """Logs and networks are those of the run alone, and it goes on as one."""
    configs = of_runs(config)
    for index in (0, 2):
        alone = tmp_path / str(index)
        loop.train(configs[index], alone)
        assert_logs_agree(joined[index], alone, rel=1e-4, abs=1e-5)
        names = sorted(path.name for path in alone.iterdir())
        assert sorted(path.name for path in joined[index].iterdir()) == names
    table = pipeline.open_split(
        pipeline.open_dataset(config.data.data_dir, config.data.dataset), "test"
    )
    networks = [trained.load(place, "latest") for place in (joined[2], tmp_path / "2")]
    batch = table.take(range(networks[0].batch_size))
    a, b = (network(batch)[0]["glaucoma"] for network in networks)
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    # Finished already: nothing is done, nothing is lost.
    before = lines(joined[2])
    loop.train(configs[2], joined[2], resume=True)
    assert lines(joined[2]) == before


@pytest.mark.slow
def test_runs_that_stand_at_different_steps_go_on(config, joined, tmp_path):
    """As a kill between two runs' checkpoints leaves them."""
    workdirs = [tmp_path / name for name in "abc"]
    for source, workdir in zip(joined, workdirs, strict=True):
        shutil.copytree(source, workdir)
    shutil.rmtree(workdirs[1] / "checkpoints" / "9")
    loop.train_together(of_runs(config), workdirs, resume=True)
    for source, workdir in zip(joined, workdirs, strict=True):
        assert_logs_agree(source, workdir, rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_runs_that_diverge_leave_the_others_alone(config, joined, tmp_path):
    configs = of_runs(config)
    # The one is spoilt for evaluation only, the other altogether.
    configs[1].optimizer.learning_rate = 300.0
    configs[2].optimizer.learning_rate = 1e38
    workdirs = [tmp_path / name for name in "abc"]
    failures = loop.train_together(configs, workdirs)
    assert set(failures) == set(workdirs[1:])
    assert "glaucoma output on" in str(failures[workdirs[1]])
    assert all("lower the learning rate" in str(x) for x in failures.values())
    assert lines(workdirs[0]) == lines(joined[0])


def test_runs_of_one_program_differ_in_nothing_else(config, make_config, tmp_path):
    configs = [config, make_config(tasks=("glaucoma",), num_epochs=4)]
    with pytest.raises(ValueError, match="differ in.*num_epochs"):
        loop.train_together(configs, [tmp_path / "a", tmp_path / "b"])
    assert not list(tmp_path.iterdir())
