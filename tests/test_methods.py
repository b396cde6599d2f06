"""A new method with no other file touched: configured, trained, logged, reported."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import configuration, methods, optim
from mtl_jax.configuration import defaults
from mtl_jax.errors import UserError
from mtl_jax.experiments import execution, plan
from mtl_jax.reporting import report

pytest_plugins = ("training_fixtures",)


class SoftmaxState(NamedTuple):
    weights: jax.Array

    def metrics(self):
        return {"softmax": self.weights}


def softmax_weighting(num_tasks, temperature):
    """Weighs the tasks by the softmax of their gradients' squared norms."""

    def weights(gram, state, *, active, **extra_args):
        norms = jnp.diagonal(gram) / temperature
        found = num_tasks * jax.nn.softmax(norms, where=active)
        return found, SoftmaxState(found)

    return optim.from_gram(weights, lambda params: SoftmaxState(jnp.ones(num_tasks)))


@pytest.fixture
def registered():
    method = methods.Method(
        "softmax",
        "Softmax of norms",
        lambda s: optax.chain(
            softmax_weighting(s.num_tasks, s.fields["temperature"]), s.tx
        ),
        {"temperature": methods.Field(1.0, 1e-3, 1e3)},
    )
    methods.register(method)
    yield method
    del methods.METHODS["softmax"]


def test_a_name_is_taken_once(registered):
    with pytest.raises(ValueError, match="'softmax' is taken"):
        methods.register(registered)
    with pytest.raises(ValueError, match="'temperature' is taken"):
        methods.register(
            methods.Method("other", "Other", fields={"temperature": methods.Field(2)})
        )


def setting_of(fields):
    return methods.Setting(optax.sgd(0.1), 3, jax.random.key(0), "encoder", fields)


@pytest.mark.parametrize("name", [k for k, m in methods.METHODS.items() if m.create])
def test_every_method_is_made_of_its_fields(name):
    """By default, and with the last choice or the lowest value of each."""
    create, own = methods.METHODS[name].create, methods.METHODS[name].fields
    default = {key: field.default for key, field in methods.fields().items()}
    other = {
        key: field.choices[-1] if field.choices else min(max(field.low, 1), field.high)
        for key, field in own.items()
    } | {"preferences": (0.5, 2.0, 1.0)}
    for fields in (default, default | other):
        assert callable(create(setting_of(fields)).update)


PREFERENCES = (0.5, 2.0, 1.0)
PREFERRING = {
    "aligned_mtl": lambda p: optim.aligned_mtl(p),
    "upgrad": lambda p: optim.upgrad(p),
    "dualproj": lambda p: optim.dualproj(p),
    "conflict_free": lambda p: optim.conflict_free(p),
    "stch": lambda p: optim.stch(0.1, p),
    "cosmos": lambda p: optim.cosmos(1.0, p),
    "pbi": lambda p: optim.pbi(5.0, p),
}


@pytest.mark.parametrize("name", PREFERRING)
def test_a_method_prefers_tasks_as_the_config_says(name):
    def step(method):
        if isinstance(method, optim.SequentialOptimizer):
            losses = [
                lambda w, carry, k=k: (((w - k) ** 2).sum() + k, carry)
                for k in range(3)
            ]
            gradients = optim.task_gradients(losses)
            return method.update(gradients, method.init(jnp.ones(2)), jnp.ones(2))[0]
        gradients = jnp.array([[1.0, 2.0, 0.5], [-2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
        return method.update(gradients, method.init(jnp.zeros(3)))[0]

    own = PREFERRING[name](PREFERENCES)
    is_weighting = isinstance(own, optim.LossWeighting)
    tx = optax.sgd(0.1)
    own = optim.weighted(own, tx) if is_weighting else optax.chain(own, tx)
    fields = {key: field.default for key, field in methods.fields().items()}
    found, equal = (
        step(methods.METHODS[name].create(setting_of(fields | {"preferences": p})))
        for p in (PREFERENCES, ())
    )
    np.testing.assert_allclose(found, step(own), rtol=1e-5)
    assert not np.allclose(found, equal, rtol=1e-2)


@pytest.mark.parametrize("name", methods.fields()["cr_mogm_smoothed"].choices)
def test_cr_mogm_smooths_every_method_that_it_may_be_given(name):
    method = methods.METHODS["cr_mogm"]
    fields = {key: field.default for key, field in methods.fields().items()}
    fields["cr_mogm_smoothed"] = name
    assert callable(method.create(setting_of(fields)).update)
    assert method.fewest_tasks(fields) == methods.METHODS[name].fewest_tasks(fields)


@pytest.mark.slow
def test_a_new_method_from_config_to_report(registered, make_config, tmp_path):
    assert defaults.get_config().method.temperature == 1.0
    with pytest.raises(UserError, match="method.temperature is 0.* between 0.001 and"):
        configuration.check(
            make_config({"method.name": "softmax", "method.temperature": 0.0})
        )
    config = make_config(tasks=("disc", "cup"), num_epochs=1, validate_every=1)
    runs = plan.repeats(config, ["softmax"], 1)
    assert execution.execute(tmp_path, "repeats", config, runs) == 0
    lines = (tmp_path / "runs" / runs[0].name / "metrics.jsonl").read_text()
    logged = json.loads(lines.splitlines()[0])
    assert logged["train/softmax_disc"] + logged["train/softmax_cup"] == pytest.approx(
        2
    )
    output, _ = report.write(tmp_path)
    for name in ("table-model.md", "report.html"):
        assert "Softmax of norms" in (output / name).read_text()
