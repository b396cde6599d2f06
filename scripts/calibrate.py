"""The command calibrate: see mtl_jax/commands/calibrate.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("calibrate")
