"""The command export: see mtl_jax/commands/export.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("export")
