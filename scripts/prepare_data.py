"""The command prepare_data: see mtl_jax/commands/prepare_data.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("prepare_data")
