"""Converts configs to text and back, and compares them."""

import json
import pathlib
from typing import Any

import ml_collections
from flax import traverse_util

from mtl_jax import files, methods
from mtl_jax.configuration.defaults import get_config
from mtl_jax.configuration.values import EXECUTION, Config
from mtl_jax.errors import UserError


def to_json(config: Config) -> str:
    """Writes a config as text; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str, path: pathlib.Path | None = None) -> Config:
    """Reads a config from the text of `to_json`; its tuples have become lists.

    Absent fields of methods that were registered since get their defaults. Those of the
    run's own method do not, since the run does not say what it was trained with. Nor do
    those of a method that its own method names, as `cr_mogm` does. Absent fields of
    `EXECUTION` get their defaults, too.

    Args:
      text: text of a config.
      path: file that holds it, named in the message.

    Raises:
      ValueError: if the text is not JSON.
      UserError: if it is JSON, but not an object, or has names that no field can have.
    """
    fields = files.parse_json(text)
    where = path or "The text"
    if not isinstance(fields, dict):
        raise UserError(
            f"{where} has {text[:40]} where a config is expected, a JSON object; name "
            "another folder."
        )
    method = fields.get("method")
    if isinstance(method, dict) and method.get("name") in [*methods.METHODS]:
        named = map(method.get, methods.METHODS[method["name"]].fields)
        own = [methods.METHODS.get(str(one)) for one in (method["name"], *named)]
        for name, field in methods.fields().items():
            if not any(one and name in one.fields for one in own):
                method.setdefault(name, field.default)
    defaults = flatten(get_config())
    for name in EXECUTION:
        group, _, field = name.rpartition(".")
        values = fields.get(group) if group else fields
        if isinstance(values, dict):
            values.setdefault(field, defaults[name])
    try:
        return ml_collections.ConfigDict(fields)
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"{where} has names that no field can have ({error}); name another folder."
        ) from error


def flatten(config: Config) -> dict[str, Any]:
    """Maps the names of a config's fields, such as `model.width`, to their values."""
    return traverse_util.flatten_dict(json.loads(to_json(config)), sep=".")


def differences(a: Config, b: Config) -> list[str]:
    """Lists the fields in which two configs differ, such as `model.width`."""
    flat_a, flat_b = flatten(a), flatten(b)
    fields = sorted({*flat_a, *flat_b})
    return [field for field in fields if flat_a.get(field) != flat_b.get(field)]
