"""The command make_report: see mtl_jax/commands/make_report.py."""

from mtl_jax import commands

if __name__ == "__main__":
    commands.run("make_report")
