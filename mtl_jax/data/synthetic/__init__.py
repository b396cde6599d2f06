"""Drawn fundi with exact truth: the TFDS builder and what it draws with."""

from mtl_jax.data.synthetic.builder import build, write_example

__all__ = ["build", "write_example"]
