"""The command train: see mtl_jax/commands/train.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("train")
