import json
import math

import jax
import jax.numpy as jnp
import optax
import pytest

from configs import default, refuge, synthetic
from mtl_jax import configuration, methods, optim
from mtl_jax.configuration import authors
from mtl_jax.data import folds
from mtl_jax.errors import UserError


def make(fields=None):
    config = default.get_config()
    config.update_from_flattened_dict(fields or {})
    return config


@pytest.mark.parametrize(
    ("field", "value", "choice"),
    [
        ("data.folds", "random", "shuffled"),
        ("data.batches", "single", "per_task"),
        ("model.encoder", "vgg19", "vgg13"),
        ("model.norm", "layer", "batch_no_average"),
        ("model.dtype", "float64", "bfloat16"),
        ("loss.fovea_reduction", "max", "mean"),
        ("method.name", "telepathy", "independent"),
        ("method.states", "group", "task"),
        ("optimizer.name", "adamax", "adamw"),
        ("optimizer.schedule", "step", "cosine"),
        ("optimizer.mu_dtype", "float16", "bfloat16"),
        ("evaluation.score", "accuracy", "dice_cup"),
        ("evaluation.vcdr", "areas", "probabilities"),
        ("evaluation.cup", "outside", "in_disc"),
        ("evaluation.connectivity", 6, "8, 4"),
        ("evaluation.empty", "none", "whole"),
        ("loss.fovea_peak", "disc", "pixel"),
        ("data.pixel_origin", "edge", "corner"),
        ("tasks", ("disc", "retina"), "fovea"),
    ],
)
def test_a_choice_that_does_not_exist(field, value, choice):
    with pytest.raises(UserError) as caught:
        configuration.check(make({field: value}))
    named = value[-1] if isinstance(value, tuple) else value
    assert f"config.{field} " in str(caught.value)
    assert repr(named) in str(caught.value)
    assert choice in str(caught.value).split("choose from")[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.width", 0.0),
        ("loss.fovea_sigma", -0.1),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", math.nan),
        ("batch_size", 0),
        ("num_epochs", -1),
        ("validate_every", 0),
        ("evaluation.vcdr_C", 0.0),
        ("model.dropout", 1.0),
        ("model.dropout", -0.5),
        ("model.norm_momentum", 1.0),
    ],
)
def test_a_number_out_of_range(field, value):
    with pytest.raises(UserError) as caught:
        configuration.check(make({field: value}))
    assert f"config.{field} is {value}; it must be" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "possible"),
    [
        ("batch_size", None, "a whole number"),
        ("batch_size", "4", "a whole number"),
        ("batch_size", 4.0, "a whole number"),
        ("num_epochs", True, "a whole number"),
        ("model.width", None, "a number"),
        ("data.dataset", None, "a text"),
        ("augmentation.flip_vertical", 1, "True or False"),
        ("tasks", "disc", "a sequence"),
    ],
)
def test_a_value_of_another_type(field, value, possible):
    config = default.get_config().to_dict()
    *parts, name = field.split(".")
    (config[parts[0]] if parts else config)[name] = value
    with pytest.raises(UserError) as caught:
        configuration.check(configuration.from_json(json.dumps(config)))
    assert str(caught.value) == f"config.{field} is {value!r}; it must be {possible}."


def test_networks_compute_in_32_bits():
    with jax.enable_x64(True), pytest.raises(UserError, match="JAX_ENABLE_X64 is set"):
        configuration.build(default.get_config())


@pytest.mark.parametrize(
    ("field", "value", "possible"),
    [
        ("method.gradnorm_learning_rate", 0.0, "lie between 1e-12 and 1000000"),
        ("seed", -1, "lie between 0 and 4294967295"),
        ("view.jitter", 1.5, "lie between 0 and 1"),
        ("interference_every", -1, "be at least 0"),
    ],
)
def test_a_number_s_bounds_are_written_as_people_do(field, value, possible):
    with pytest.raises(UserError) as caught:
        configuration.check(make({field: value}))
    assert str(caught.value) == f"config.{field} is {value}; it must {possible}."


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("augmentation.flip_horizontal", True),
        ("augmentation.flip_vertical", True),
        ("augmentation.rotation", 5.0),
        ("augmentation.scale", 0.1),
        ("view.kind", "whole"),
    ],
)
def test_foveas_that_would_not_move_with_their_images(field, value):
    fields = {"data.pixel_origin": "corner", field: value}
    with pytest.raises(UserError, match=rf"'corner'.* config\.{field} would"):
        configuration.check(make(fields))
    configuration.check(make({**fields, "tasks": ("disc",)}))
    configuration.check(make({field: value}))
    configuration.check(
        make({"data.pixel_origin": "corner", "augmentation.brightness": 0.2})
    )


@pytest.mark.parametrize("names", [(), ("disc", "disc")])
def test_tasks_none_or_twice(names):
    with pytest.raises(UserError, match=r"config\.tasks is .*at least one"):
        configuration.check(make({"tasks": names}))


def test_json_round_trip():
    config = make({"model.width": 1 / 3, "tasks": ("fovea", "disc"), "seed": 7})
    text = configuration.to_json(config)
    again = configuration.from_json(text)
    assert configuration.to_json(again) == text
    assert again.model.width == 1 / 3
    assert tuple(again.tasks) == ("fovea", "disc")
    assert configuration.differences(config, again) == []
    configuration.check(again)
    assert [t.name for t in configuration.build(again).tasks] == ["disc", "fovea"]


@pytest.mark.parametrize("text", ["[]", "3", "null", '"config"'])
def test_json_that_is_no_config(text, tmp_path):
    with pytest.raises(UserError) as caught:
        configuration.from_json(text, tmp_path / "config.json")
    sentence = f"{tmp_path / 'config.json'} has {text} where a config is expected"
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": [["disc"]]}, r"config\.tasks has \['disc'\]; choose from"),
        ({"method": {"name": ["single"]}}, "config"),
        ({"model.width": 1.0}, "has names that no field can have"),
        ({"__class__": 1}, "has names that no field can have"),
    ],
)
def test_json_with_values_that_no_config_has(fields, said):
    text = json.dumps(default.get_config().to_dict() | fields)
    with pytest.raises(UserError, match=said):
        configuration.check(configuration.from_json(text))


def test_json_that_is_too_deep():
    with pytest.raises(ValueError, match="nested too deeply"):
        configuration.from_json("[" * 100_000)


def test_differences_are_named():
    a = make()
    b = make({"model.width": 0.5, "tasks": ("disc",), "num_epochs": 2})
    wanted = ["model.width", "num_epochs", "tasks"]
    assert configuration.differences(a, b) == wanted
    assert configuration.differences(b, a) == wanted
    text = json.loads(configuration.to_json(a))
    del text["optimizer"]["schedule"]
    older = configuration.from_json(json.dumps(text))
    assert configuration.differences(a, older) == ["optimizer.schedule"]


@pytest.mark.parametrize(
    "preferences",
    [(1.0,), (1, 2, 0, 1), (1, 2, True, 1), (1, 2, "3", 1), (math.inf,) * 4],
)
def test_preferences_that_the_tasks_do_not_have(preferences):
    with pytest.raises(UserError) as caught:
        configuration.check(
            make({"method.name": "upgrad", "method.preferences": preferences})
        )
    assert str(caught.value).startswith(
        f"config.method.preferences is {preferences}; give a positive number for each "
        "of the 4 tasks"
    )


@pytest.mark.parametrize("name", ["upgrad", "single", "two_stage", "vanilla"])
def test_preferences_of_the_tasks(name):
    fields = {"method.name": name, "method.preferences": (1, 2.5, 1, 0.5)}
    if name == "two_stage":
        fields["view.size"] = 64
    configuration.check(make(fields))


def test_a_run_outlives_fields_that_only_say_how_it_is_made():
    text = json.loads(configuration.to_json(make()))
    del text["data"]["memory"], text["steps_per_dispatch"]
    older = configuration.from_json(json.dumps(text))
    assert configuration.differences(older, make()) == []
    text["data"] = 3
    with pytest.raises(UserError):
        configuration.check(configuration.from_json(json.dumps(text)))


def test_a_run_outlives_methods_that_are_registered_later():
    """It lacks their fields; its own method's are missed."""
    text = json.loads(configuration.to_json(make({"method.name": "cagrad"})))
    text["method"] = {"name": "cagrad", "cagrad_c": 0.25}
    older = configuration.from_json(json.dumps(text))
    configuration.check(older)
    assert older.method.cagrad_c == 0.25
    assert older.method.gradnorm_alpha == 1.5
    del text["method"]["cagrad_c"]
    with pytest.raises(UserError, match="cagrad_c"):
        configuration.check(configuration.from_json(json.dumps(text)))
    # So are those of a method that it names.
    own = {"cr_mogm_smoothed": "cagrad", "cr_mogm_alpha": 0.9, "cagrad_c": 0.25}
    text["method"] = {"name": "cr_mogm", **own}
    configuration.check(configuration.from_json(json.dumps(text)))
    del text["method"]["cagrad_c"]
    with pytest.raises(UserError, match="cagrad_c is missing"):
        configuration.check(configuration.from_json(json.dumps(text)))


def learning_rates(fields, steps_per_epoch, counts):
    """What a step of plain gradient descent on a gradient of one subtracts."""
    config = make({"optimizer.name": "sgd", "tasks": ("disc",), **fields})
    optimizer = configuration.build(config).optimizer(steps_per_epoch)

    gradients = optim.task_gradients([lambda params, carry: (params, carry)])

    @jax.jit
    def run(state):
        def step(params_and_state, _):
            params, state = params_and_state
            new, state, _, _ = optimizer.update(gradients, state, params)
            return (jnp.zeros(()), state), params - new

        return jax.lax.scan(step, (jnp.zeros(()), state), None, max(counts) + 1)[1]

    rates = run(optimizer.init(jnp.zeros(())))
    return [float(rates[count]) for count in counts]


def test_constant_schedule():
    fields = {"optimizer.learning_rate": 0.25, "num_epochs": 2}
    assert learning_rates(fields, 5, [0, 4, 9, 20]) == [0.25] * 4


def test_linear_schedule_ends_at_zero():
    fields = {
        "optimizer.learning_rate": 0.5,
        "optimizer.schedule": "linear",
        "num_epochs": 2,
    }
    rates = learning_rates(fields, 5, [0, 1, 5, 9, 10])
    assert rates == pytest.approx([0.5, 0.45, 0.25, 0.05, 0.0], abs=1e-7)


def test_cosine_schedule():
    fields = {
        "optimizer.learning_rate": 0.2,
        "optimizer.schedule": "cosine",
        "num_epochs": 3,
    }
    counts = [0, 1, 3, 6, 11, 12]
    wanted = [0.1 * (1 + math.cos(math.pi * i / 12)) for i in counts]
    assert learning_rates(fields, 4, counts) == pytest.approx(wanted, abs=1e-7)


def test_warm_up_rises_to_the_peak_and_the_rest_decays_to_zero():
    fields = {
        "optimizer.learning_rate": 0.4,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": 2,
        "num_epochs": 5,
    }
    # Ten steps an epoch in the middle of the run: four of warm-up, six of decay.
    counts = [0, 1, 2, 3, 4, 7, 10]
    wanted = [0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.0]
    assert learning_rates(fields, 2, counts) == pytest.approx(wanted, abs=1e-7)


def test_warm_up_of_one_step():
    fields = {"optimizer.learning_rate": 0.4, "optimizer.warmup_epochs": 0.5}
    assert learning_rates(fields, 2, [0, 1, 2]) == pytest.approx([0.4] * 3)


@pytest.mark.parametrize("name", configuration.OPTIMIZERS)
def test_optimizer_is_the_one_named_in_optax(name):
    config = make({"optimizer.name": name, "optimizer.learning_rate": 0.1})
    optimizer = configuration.build(config).optimizer(3)
    params = jnp.array([1.0, -2.0])

    gradients = optim.task_gradients(
        [lambda p, carry, k=k: ((1 + k) * (p**2).sum() / 2, carry) for k in range(4)]
    )

    state = optimizer.init(params)
    found, state, _, _ = jax.jit(lambda s, p: optimizer.update(gradients, s, p))(
        state, params
    )
    reference = getattr(optax, name)(0.1)
    states = [reference.init(params) for _ in range(4)]
    for task in range(4):
        updates, states[task] = reference.update(
            (1.0 + task) * params, states[task], params
        )
        params = optax.apply_updates(params, updates)
    assert jnp.allclose(found, params, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "lion"])
def test_first_moments_in_bfloat16(name):
    """Adam's second moments, which hardly change in a step, stay float32."""
    config = make({"optimizer.name": name, "optimizer.mu_dtype": "bfloat16"})
    configuration.check(config)
    state = configuration.build(config).optimizer(3).init(jnp.ones(5))
    moments = {
        jax.tree_util.keystr(path)[-3:]: leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.shape == (4, 5)
    }
    second = {} if name == "lion" else {".nu": jnp.float32}
    assert moments == {".mu": jnp.bfloat16, **second}


def test_an_optimizer_without_a_first_moment():
    config = make({"optimizer.name": "sgd", "optimizer.mu_dtype": "bfloat16"})
    with pytest.raises(UserError, match="sgd keeps no first moment; choose from adam"):
        configuration.check(config)


def test_model_follows_the_config():
    fields = {"tasks": ("fovea", "glaucoma"), "model.dtype": "bfloat16"}
    model = configuration.build(make({**fields, "model.norm": "group"})).model
    assert model.classification_heads == ("glaucoma",)
    assert model.dense_heads == ("fovea",)
    assert (model.dtype, model.norm) == (jnp.bfloat16, "group")


def test_folds_follow_the_config():
    assert configuration.build(make({"data.folds": "shuffled"})).fold is None
    fold = configuration.build(make({"data.fold": "2", "data.fold_seed": 7})).fold
    assert fold == folds.Fold(2, 5, 7, "stratified")
    config = refuge.get_config("authors")
    # An installed package comes without configs/.
    assert authors.get_config() == config
    config.data.fold = "0"
    # As a checkpoint keeps it.
    stored = configuration.from_json(configuration.to_json(config))
    assert configuration.build(stored).fold == folds.Fold(0, kind="shuffled")


def test_no_augmentation_by_default():
    assert configuration.build(make()).augment is None
    augment = configuration.build(make({"augmentation.rotation": 5.0})).augment
    assert augment.rotation == 5.0


def test_words_behind_a_config_file():
    assert refuge.get_config().method.name == "independent"
    config = refuge.get_config("pcgrad,pretrained")
    assert config.method.name == "pcgrad"
    assert config.model.pretrained == "weights/vgg16_bn"
    study = synthetic.get_config("study,vanilla")
    assert (study.method.name, study.num_epochs) == ("vanilla", 48)
    for words in (
        *methods.METHODS,
        "authors",
        "single,authors",
        "two_stage,pretrained",
    ):
        configuration.check(refuge.get_config(words))
