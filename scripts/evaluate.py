"""The command evaluate: see mtl_jax/commands/evaluate.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("evaluate")
