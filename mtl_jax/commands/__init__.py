"""The commands. Each is a module that defines its flags and `main`.

`scripts/VERB.py` and the program `mtl-jax` run them. A new module is a new command.
"""

from mtl_jax.commands._program import main, run

__all__ = ["main", "run"]
