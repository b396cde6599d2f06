"""The command repeat: see mtl_jax/commands/repeat.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("repeat")
