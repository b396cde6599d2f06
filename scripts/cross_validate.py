"""The command cross_validate: see mtl_jax/commands/cross_validate.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("cross_validate")
