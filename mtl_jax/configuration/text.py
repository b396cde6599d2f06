"""Converts configs to text and back, and compares them."""

import json
from collections.abc import Sequence
from typing import Any

import ml_collections

from mtl_jax.configuration.values import Config


def to_json(config: Config) -> str:
    """Writes a config as text; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """Reads a config from the text of `to_json`; its tuples have become lists."""
    return ml_collections.ConfigDict(json.loads(text))


def differences(a: Config, b: Config) -> list[str]:
    """Lists the fields in which two configs differ, such as `model.width`."""
    flat_a, flat_b = (dict(flatten(json.loads(to_json(c)))) for c in (a, b))
    fields = sorted({*flat_a, *flat_b})
    return [field for field in fields if flat_a.get(field) != flat_b.get(field)]


def flatten(tree: dict[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    """Lists the fields of nested dicts as pairs of dotted name and value."""
    pairs = []
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs.extend(flatten(value, f"{prefix}{key}."))
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
