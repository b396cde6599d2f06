"""Drawn fundi with exact annotations: the TFDS builder and its renderer."""

from mtl_jax.data.synthetic.builder import build, write_example

__all__ = ["build", "write_example"]
