"""Converts configs to text and back, and compares them."""

import json
import pathlib
from typing import Any

import ml_collections
from flax import traverse_util

from mtl_jax import methods
from mtl_jax.configuration.values import Config
from mtl_jax.errors import UserError


def to_json(config: Config) -> str:
    """Writes a config as text; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str, path: pathlib.Path | None = None) -> Config:
    """Reads a config from the text of `to_json`; its tuples have become lists.

    Methods that were registered since have their fields' defaults.

    Args:
      text: text of a config.
      path: file that holds it, named in the message.

    Raises:
      ValueError: if the text is not JSON.
      UserError: if it is JSON, but not an object.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise UserError(
            f"{path or 'The text'} has {text[:40]} where a config is expected, a JSON "
            "object; name another folder."
        )
    method = fields.get("method")
    if isinstance(method, dict) and method.get("name") in methods.METHODS:
        own = methods.METHODS[method["name"]].fields
        for name, field in methods.fields().items():
            if name not in own:
                method.setdefault(name, field.default)
    return ml_collections.ConfigDict(fields)


def flatten(config: Config) -> dict[str, Any]:
    """Maps the names of a config's fields, such as `model.width`, to their values."""
    return traverse_util.flatten_dict(json.loads(to_json(config)), sep=".")


def differences(a: Config, b: Config) -> list[str]:
    """Lists the fields in which two configs differ, such as `model.width`."""
    flat_a, flat_b = flatten(a), flatten(b)
    fields = sorted({*flat_a, *flat_b})
    return [field for field in fields if flat_a.get(field) != flat_b.get(field)]
