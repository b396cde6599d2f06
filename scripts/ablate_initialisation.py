"""The command ablate_initialisation: see mtl_jax/commands/ablate_initialisation.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("ablate_initialisation")
