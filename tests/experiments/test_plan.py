"""What runs an experiment is going to have."""

import pathlib

import pytest

from configs import refuge
from mtl_jax import configuration
from mtl_jax.errors import UserError
from mtl_jax.experiments import plan

pytest_plugins = ("training_fixtures",)

METHODS = ("independent", "vanilla")
ROOT = pathlib.Path(__file__).parents[2]


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
    with pytest.raises(UserError, match="--shard=3/3 must be one of 0/3 to 2/3"):
        plan.share(runs, 3, 3)
    with pytest.raises(UserError, match="nothing to run"):
        plan.repeats(config, METHODS, 0)
    with pytest.raises(UserError, match="each learning rate once"):
        plan.learning_rates(config, METHODS, [1e-3, 1e-3], 1)
    everything = make_config({"evaluation.score": "fovea_error"})
    (run,) = plan.repeats(everything, ["two_stage"], 1)
    assert run.config.method.name == "two_stage"
    assert run.config.model.encoder == "resnet34"
    configuration.check(run.config)


def test_folds_have_seeds_and_methods_rates_of_their_own(make_config):
    config = make_config({"seed": 5})
    runs = plan.cross_validation(config, METHODS, 3)
    assert [(run.fold, run.seed, run.method) for run in runs] == [
        (str(fold), 5 + fold, method) for fold in range(3) for method in METHODS
    ]
    assert all(run.config.seed == run.seed for run in runs)
    rates = {"independent": [1e-3, 1e-2], "vanilla": [3e-3]}
    runs = plan.cross_validation(config, METHODS, 3, rates, [1, 2])
    assert [(run.fold, run.method, run.learning_rate) for run in runs] == [
        (fold, method, rate)
        for fold in "12"
        for method, own in rates.items()
        for rate in own
    ]


@pytest.mark.parametrize(
    ("encoder", "pretrained", "own", "wanted"),
    [
        ("vgg13", "weights/vgg13_bn", "weights/resnet34", "weights/resnet34"),
        # Among methods that start from scratch it does too.
        ("vgg13", "", "weights/resnet34", ""),
        ("vgg13", "", "", ""),
        # The weights of the other methods fit: their encoder is the same.
        ("resnet34", "weights/resnet34", "", "weights/resnet34"),
    ],
)
def test_what_two_stage_starts_from(make_config, encoder, pretrained, own, wanted):
    fields = {
        "model.encoder": encoder,
        "model.pretrained": pretrained,
        "method.two_stage_pretrained": own,
    }
    runs = plan.repeats(make_config(fields), ["independent", "two_stage"], 1)
    assert [run.config.model.pretrained for run in runs] == [pretrained, wanted]
    # Whoever starts from ImageNet sees images as there.
    for run in runs:
        for one in configuration.part_configs(run.config).values() or [run.config]:
            model = configuration.build(one).model
            assert model.normalize_input == bool(run.config.model.pretrained)


def test_no_row_from_scratch_among_pretrained_ones(make_config):
    config = make_config({"model.pretrained": "weights/vgg13_bn"})
    with pytest.raises(
        UserError, match="resnet34 .*--config.method.two_stage_pretrained"
    ):
        plan.cross_validation(config, ["independent", "two_stage"], 2)
    assert len(plan.cross_validation(config, METHODS, 2)) == 4


def test_pretrained_configs_have_weights_for_two_stage():
    config = refuge.get_config("vanilla,pretrained")
    other, resnet = plan.cross_validation(config, ["vanilla", "two_stage"], 5)[:2]
    assert other.config.model.pretrained == "weights/vgg16_bn"
    assert resnet.config.model.pretrained == "weights/resnet34"


def test_repeats_are_of_the_official_splits(make_config):
    config = make_config({"data.fold": "1"})
    with pytest.raises(UserError, match="data.fold is '1', but repeats.*leave it out"):
        plan.repeats(config, ["independent"], 1)
