"""The command benchmark: see mtl_jax/commands/benchmark.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("benchmark")
