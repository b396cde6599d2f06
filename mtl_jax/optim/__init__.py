"""Optimisers over several task losses, for any JAX model."""

from mtl_jax.optim.sequential import SequentialOptimizer, independent, task_gradients

__all__ = ["SequentialOptimizer", "independent", "task_gradients"]
