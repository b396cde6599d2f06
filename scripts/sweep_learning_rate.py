"""The command sweep_learning_rate: see mtl_jax/commands/sweep_learning_rate.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("sweep_learning_rate")
