"""The command serve: see mtl_jax/commands/serve.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("serve")
