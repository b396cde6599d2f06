"""The user's own photographs: the TFDS builder and the manifest it reads."""

from mtl_jax.data.folder.builder import build

__all__ = ["build"]
