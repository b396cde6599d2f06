"""REFUGE: the TFDS builder, and finding the files however people keep them."""

from mtl_jax.data.refuge.builder import build

__all__ = ["build"]
