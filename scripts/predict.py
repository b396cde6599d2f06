"""The command predict: see mtl_jax/commands/predict.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("predict")
