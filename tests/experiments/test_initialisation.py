"""Networks that begin partly by another rule."""

import copy

import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.experiments import initialisation
from mtl_jax.training.checkpoints import Checkpoints

pytest_plugins = ("training_fixtures",)


@pytest.fixture(scope="module")
def config(make_config):
    """The encoder alone, one epoch."""
    return make_config(tasks=("glaucoma",), num_epochs=1, validate_every=1)


@pytest.fixture(scope="module")
def parameters(config):
    """By variant, each parameter as a vector, by path."""
    return {
        variant: {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.ravel(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                initialisation.begin(config, variant)["params"]
            )
        }
        for variant in ("none", "all", "heads", "biases")
    }


def test_both_rules_draw_the_same_numbers_at_their_own_scale(parameters):
    """Kernels differ by sqrt(6), whatever their size; biases are zero or drawn."""
    kaiming, he = parameters["none"], parameters["all"]
    drawn = [name for name in kaiming if "norm" not in name]
    assert len(drawn) == 2 * 4
    for name in drawn:
        if name.endswith("kernel"):
            np.testing.assert_allclose(he[name], np.sqrt(6) * kaiming[name], atol=1e-6)
        else:
            assert not he[name].any()
            assert kaiming[name].any()


@pytest.mark.parametrize(
    ("variant", "is_he"),
    [
        ("heads", lambda name: name.startswith("head_")),
        ("biases", lambda name: name.endswith("bias")),
    ],
)
def test_a_variant_takes_its_part_from_he(parameters, variant, is_he):
    for name, values in parameters[variant].items():
        expected = parameters["all" if is_he(name) else "none"][name]
        np.testing.assert_array_equal(values, expected)


@pytest.mark.slow
def test_networks_are_trained_from_where_they_begin(config, parameters, tmp_path):
    rows = initialisation.ablate(config, tmp_path, ["heads"], num_seeds=1)
    workdir = tmp_path / "heads-seed_0"
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.steps() == [0, 3]
    shapes = jax.eval_shape(lambda: initialisation.begin(config, "heads"))
    params = checkpoints.restore_model(0, shapes)["params"]
    head = np.ravel(params["head_glaucoma"]["kernel"])
    np.testing.assert_array_equal(head, parameters["all"]["head_glaucoma/kernel"])
    assert rows[0]["auc"] is not None
    assert rows[0]["dice_cup"] is None
    # Nothing is done twice, and nothing of another config is taken for this one's.
    trained = (workdir / "metrics.jsonl").read_text()
    again = initialisation.ablate(config, tmp_path, ["heads", "heads"], num_seeds=1)
    assert again == rows
    assert (workdir / "metrics.jsonl").read_text() == trained
    other = copy.deepcopy(config)
    other.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match="another config"):
        initialisation.ablate(other, tmp_path, ["heads"], num_seeds=1)


def test_table():
    row = {"seed": 0, "auc": 0.5, "dice_disc": 0.8, "fovea_error": 2.0}
    rows = [
        {**row, "variant": "none", "dice_cup": 0.6},
        {**row, "variant": "none", "dice_cup": 0.0},
        {**row, "variant": "all", "dice_cup": None},
    ]
    lines = initialisation.table(rows).splitlines()
    assert lines[2] == "| none | 0.500 | 0.800 | 0.300 | 2.00 | 1 of 2 |"
    assert lines[3] == "| all | 0.500 | 0.800 | - | 2.00 | 0 of 1 |"
