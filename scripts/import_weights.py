"""The command import_weights: see mtl_jax/commands/import_weights.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("import_weights")
