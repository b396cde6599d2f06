"""What runs an experiment is going to have."""

import pytest

from mtl_jax import configuration
from mtl_jax.errors import UserError
from mtl_jax.experiments import plan

pytest_plugins = ("training_fixtures",)

METHODS = ("independent", "vanilla")


def test_plans(make_config):
    config = make_config(tasks=("glaucoma",))
    runs = plan.learning_rates(config, ["independent"], [1e-3, 1e-4], 2)
    assert [(run.learning_rate, run.seed) for run in runs] == [
        (1e-3, 0),
        (1e-4, 0),
        (1e-3, 1),
        (1e-4, 1),
    ]
    assert all(run.config.optimizer.learning_rate == run.learning_rate for run in runs)
    parts = [plan.share(runs, i, 3) for i in range(3)]
    assert sorted(run.name for part in parts for run in part) == sorted(
        run.name for run in runs
    )
    with pytest.raises(UserError, match="--shard=3/3 is none of 0/3 to 2/3"):
        plan.share(runs, 3, 3)
    with pytest.raises(UserError, match="nothing to run"):
        plan.repeats(config, METHODS, 0)
    with pytest.raises(UserError, match="no learning rate twice"):
        plan.learning_rates(config, METHODS, [1e-3, 1e-3], 1)
    everything = make_config({"evaluation.score": "fovea_error"})
    (run,) = plan.repeats(everything, ["res34_unet"], 1)
    assert run.config.method.name == "two_stage"
    assert run.config.model.encoder == "resnet34"
    configuration.check(run.config)


def test_plans_do_not_take_over_what_does_not_fit(make_config):
    config = make_config({"model.pretrained": "weights/vgg13_bn"})
    vgg, resnet = plan.repeats(config, ["independent", "res34_unet"], 1)
    assert vgg.config.model.pretrained == "weights/vgg13_bn"
    assert resnet.config.model.pretrained == ""
    # Weights of a ResNet do fit.
    config.model.encoder = "resnet34"
    (resnet,) = plan.repeats(config, ["res34_unet"], 1)
    assert resnet.config.model.pretrained == "weights/vgg13_bn"
    config.data.fold = "1"
    with pytest.raises(UserError, match="data.fold is '1', but repeats.*leave it out"):
        plan.repeats(config, ["independent"], 1)
