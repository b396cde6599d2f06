"""Methods chosen by config, from training to evaluation."""

import csv
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_fixtures import STEPS_PER_EPOCH

from configs import default
from mtl_jax import configuration, optim, workdirs
from mtl_jax.data.synthetic import write_example
from mtl_jax.errors import UserError
from mtl_jax.reporting import evaluation, predictions
from mtl_jax.workdirs import load
from mtl_jax.workdirs._claim import networks

pytest_plugins = ("training_fixtures",)

CONFIGS = sorted(
    path.stem for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py")
)


def lines_of(workdir):
    return list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))


def num_parameters(config):
    shapes = jax.eval_shape(
        configuration.build(config).model.init,
        jax.random.key(0),
        jnp.zeros((1, 32, 32, 3)),
    )
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_describes_something(name):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    config = module.get_config()
    configuration.check(config)
    for one in configuration.part_configs(config).values() or [config]:
        configuration.check(one, is_part=True)
        configuration.build(one).optimizer(10)
    if "_" in name:
        # The first command is the one that runs this file.
        assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize(
    ("encoder", "count"), [("vgg13", 61213572), ("vgg16", 82462596)]
)
def test_single_task_networks_have_the_papers_number_of_parameters(encoder, count):
    config = default.get_config()
    config.method.name, config.model.encoder = "single", encoder
    configs = configuration.part_configs(config)
    assert list(configs) == ["glaucoma", "disc", "cup", "fovea"]
    assert sum(map(num_parameters, configs.values())) == count


def test_networks_of_a_task_are_scored_by_what_they_predict():
    config = default.get_config()
    config.method.name = "single"
    scores = {}
    for config.evaluation.score in ("auc", "dice_cup", "mean", "loss"):
        parts = configuration.part_configs(config).values()
        scores[config.evaluation.score] = [one.evaluation.score for one in parts]
    assert scores == {
        "auc": ["auc", "mean", "mean", "mean"],
        "dice_cup": ["mean", "mean", "dice_cup", "mean"],
        "mean": ["mean"] * 4,
        "loss": ["loss"] * 4,
    }


@pytest.mark.parametrize("encoder", ["vgg13", "vgg16"])
def test_gradnorm_looks_at_the_deepest_convolution_of_the_encoder(encoder):
    config = default.get_config()
    config.method.name, config.model.encoder = "gradnorm", encoder
    shapes = jax.eval_shape(
        configuration.build(config).model.init,
        jax.random.key(0),
        jnp.zeros((1, 32, 32, 3)),
    )
    # The network's parameters by name, each a single number.
    params = jax.tree.map(lambda _: np.ones(1, np.float32), shapes["params"])
    deepest = max(k for k in params["encoder"] if k.startswith("block5"))
    assert deepest == {"vgg13": "block5_conv2", "vgg16": "block5_conv3"}[encoder]
    optimizer = configuration.build(config).optimizer(10)

    def loss(slope, params, carry):
        kernel = params["encoder"][deepest]["conv"]["kernel"]
        return 1 + slope * (kernel.sum() - 1), carry

    losses = [functools.partial(loss, slope) for slope in range(4)]

    @jax.jit
    def weights(params):
        _, state, _, _ = optimizer.update(
            optim.task_gradients(losses), optimizer.init(params), params
        )
        return state.weighting.weights

    # Elsewhere the gradients are zero and would not tell the tasks apart.
    assert np.ptp(weights(params)) > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method.name": "magic"}, "method.name has 'magic'; choose from single"),
        ({"method.name": "random_grouping", "method.num_groups": 5}, "from 1 to"),
        ({"method.name": "random_grouping", "method.num_groups": 0}, "from 1 to"),
        ({"method.gradnorm_learning_rate": 0.0}, "must lie between 1e-12 and"),
        ({"method.gradnorm_alpha": -1.0}, "must lie between"),
        ({"method.name": "krum", "method.krum_n_byzantine": 2}, "needs at least 5"),
        (
            {"method.name": "trimmed_mean", "method.trimmed_mean_trim_number": 2},
            "at least 5",
        ),
        ({"method.cr_mogm_smoothed": "vanilla"}, "choose from pcgrad, mgda, cagrad"),
        ({"interference_every": -1}, "must be at least 0"),
    ],
)
def test_bad_values_are_named(fields, message):
    config = default.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        configuration.check(config)


@pytest.mark.slow
def test_a_joint_method_trains_and_tells(make_config, compiled, tmp_path):
    """The encoder alone: nothing to conflict with."""
    config = make_config(
        {"method.name": "pcgrad", "interference_every": 4},
        tasks=("glaucoma",),
        num_epochs=2,
        validate_every=2,
    )
    workdirs.train(config, tmp_path)
    lines = lines_of(tmp_path)
    assert [x["train/conflicts"] for x in lines if "train/loss_glaucoma" in x] == [0, 0]
    found = [line for line in lines if "interference/norm_glaucoma" in line]
    assert [line["step"] for line in found] == [1, 5]
    assert all(line["interference/norm_glaucoma"] > 0 for line in found)
    _, metrics = evaluation.write(tmp_path)
    assert metrics["num_images"]["auc"] == 6


def test_sequential_methods_by_their_names():
    config = default.get_config()
    config.optimizer.name = "sgd"
    gradients = optim.task_gradients(
        [lambda w, carry, k=k: ((w - k) ** 2, carry) for k in range(4)]
    )
    ends = {}
    for name in ("independent", "alternating", "vanilla", "random_grouping"):
        config.method.name = name
        config.optimizer.learning_rate = 0.1
        optimizer = configuration.build(config).optimizer(10)
        w, _, _, losses = optimizer.update(
            gradients, optimizer.init(jnp.zeros(())), jnp.zeros(())
        )
        ends[name] = float(w)
        assert losses.shape == (4,)
    # The sum's gradient at 0 is -2 (0 + 1 + 2 + 3); in turn w <- 0.8 w + 0.2 k.
    assert ends["vanilla"] == pytest.approx(1.2)
    in_turn = ((0.2 * 0.8) + 0.4) * 0.8 + 0.6
    assert ends["independent"] == ends["alternating"] == pytest.approx(in_turn)
    assert ends["random_grouping"] not in (ends["vanilla"], ends["independent"])


@pytest.mark.parametrize(("states", "number"), [("slot", 3), ("task", 4)])
def test_states_of_random_grouping_by_their_names(states, number):
    config = default.get_config()
    config.method.name, config.method.num_groups = "random_grouping", 3
    config.method.states = states
    optimizer = configuration.build(config).optimizer(10)
    moments = optimizer.init(jnp.zeros(5)).slots.inner_state[0]
    assert moments.mu.shape == (number, 5)


@pytest.fixture(scope="module")
def single(trained, make_config):
    """Two networks in one workdir, their programs compiled for other tests as well."""
    config = make_config(
        {"method.name": "single"},
        tasks=("glaucoma", "fovea"),
        num_epochs=2,
        validate_every=1,
    )
    return trained("single_run", config)


def test_single_task_networks_are_runs_of_their_own(single):
    config, workdir = single.config, single.workdir
    assert {p.name for p in workdir.iterdir()} == {"config.json", "glaucoma", "fovea"}
    stored = configuration.from_json((workdir / "config.json").read_text())
    assert configuration.differences(stored, config) == []
    for name in ("glaucoma", "fovea"):
        assert lines_of(workdir / name)[-1]["step"] == 2 * STEPS_PER_EPOCH
        assert load(workdir / name).config.tasks == [name]


def test_single_task_networks_are_one_model(single, tmp_path):
    workdir = single.copy(tmp_path / "run")
    members = [load(workdir / name) for name in ("glaucoma", "fovea")]
    model = load(workdir)
    assert list(model.config.tasks) == ["glaucoma", "fovea"]
    assert model.num_parameters == sum(m.num_parameters for m in members)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "u1")}
    logits, _ = model(batch)
    for name, member in zip(("glaucoma", "fovea"), members, strict=True):
        np.testing.assert_array_equal(logits[name], member(batch)[0][name])
    output, metrics = evaluation.write(workdir)
    alone = {
        name: evaluation.write(workdir / name)[1] for name in ("glaucoma", "fovea")
    }
    assert metrics["auc_fc"] == alone["glaucoma"]["auc_fc"]
    assert metrics["fovea_error"] == alone["fovea"]["fovea_error"]
    assert metrics["seconds_per_step"] == pytest.approx(
        sum(one["seconds_per_step"] for one in alone.values())
    )
    assert (output / "roc.png").exists()
    write_example(tmp_path / "photographs")
    predictions.write(workdir, str(tmp_path / "photographs/images"), tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["probability_fc"] and row["fovea_x"] for row in rows)
    assert not any(row["mask"] for row in rows)


def test_a_part_of_single_task_networks_is_no_model(single, tmp_path):
    workdir = single.copy(tmp_path / "run")
    shutil.rmtree(workdir / "fovea")
    with pytest.raises(UserError, match="not hold the network fovea yet.*--resume"):
        load(workdir)
    assert load(workdir / "glaucoma").config.tasks == ["glaucoma"]


def test_a_network_of_a_task_that_is_not_registered(single, tmp_path):
    """Its folder is not passed over."""
    workdir = single.copy(tmp_path / "run")
    (workdir / "fovea").rename(workdir / "rim")
    (workdir / "config.json").unlink()
    names = [folder.name for folder in networks(workdir)]
    assert names == ["glaucoma", "rim"]


def test_single_task_networks_resume(single, tmp_path):
    config, workdir = single.config, single.copy(tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run of this config"):
        workdirs.train(config, workdir)
    before = {name: lines_of(workdir / name) for name in ("glaucoma", "fovea")}
    workdirs.train(config, workdir, resume=True)
    assert {name: lines_of(workdir / name) for name in before} == before
    other = configuration.from_json(configuration.to_json(config))
    other.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match="differs in optimizer.learning_rate"):
        workdirs.train(other, workdir, resume=True)
