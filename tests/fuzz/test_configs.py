"""The reader of configs on JSON as other versions, programs and people write it."""

import json

import pytest
from fuzz.damage import changed, damaged, odd_values, outcome
from hypothesis import given
from hypothesis import strategies as st

from configs import refuge
from mtl_jax import configuration

WORDS = ("", "pcgrad", "single", "two_stage", "authors", "cr_mogm")


def usual():
    for word in WORDS:
        yield json.loads(configuration.to_json(refuge.get_config(word)))


USUAL = list(usual())


def read(text):
    """Reads and checks a config; returns None if it is refused rightly."""
    try:
        config, _ = outcome(configuration.from_json, text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            json.loads(text)
        return None
    if config is None or outcome(configuration.check, config)[1]:
        return None
    return config


@given(st.data())
def test_changed_values(data):
    fields = data.draw(changed(data.draw(st.sampled_from(USUAL))))
    config = read(json.dumps(fields))
    if config is None:
        return
    again = configuration.from_json(configuration.to_json(config))
    assert configuration.differences(config, again) == []
    for part in list(configuration.part_configs(config).values()) or [config]:
        built = configuration.build(part)
        assert {task.name for task in built.tasks} == {*part.tasks}
        # What a run makes first.
        assert built.optimizer(steps_per_epoch=10)


@given(st.data())
def test_damaged_bytes(data):
    text = json.dumps(data.draw(st.sampled_from(USUAL)), indent=2)
    content = data.draw(damaged(text.encode()))
    read(content.decode("utf-8", "replace"))


@given(odd_values)
def test_other_json(value):
    assert read(json.dumps(value)) is None
