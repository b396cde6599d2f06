"""REFUGE: the TFDS builder, and the search for files in any arrangement."""

from mtl_jax.data.refuge.builder import build

__all__ = ["build"]
