"""The user's own photographs: the manifest and its TFDS builder."""

from mtl_jax.data.folder.builder import build

__all__ = ["build"]
