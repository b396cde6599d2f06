"""What all scripts share: how they end."""

import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from mtl_jax.errors import UserError


def run(main: Callable[[], int | None]) -> None:
    """Runs a script's main function and exits.

    A `UserError` is printed as one sentence, without a traceback, and the exit code is
    1. Ctrl-C exits with 130. Anything else is a bug and keeps its traceback.
    """

    def guarded(argv: list[str]) -> int:
        if len(argv) > 1:
            print(f"error: unknown argument {argv[1]!r}.", file=sys.stderr)
            return 2
        try:
            return main() or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted.", file=sys.stderr)
            return 130

    logging.set_verbosity(logging.WARNING)
    app.run(guarded)


def required(flag: flags.FlagHolder) -> Any:
    """The value of a flag that this use of the script cannot do without.

    Raises:
      UserError: if it was not given.
    """
    if flag.value is None:
        raise UserError(f"--{flag.name} is missing; it is needed here.")
    return flag.value


def whole_numbers(flag: flags.FlagHolder) -> list[int]:
    """The value of a comma-separated list flag as whole numbers.

    Raises:
      UserError: if one of them is not.
    """
    try:
        return [int(value) for value in flag.value]
    except ValueError:
        raise UserError(
            f"--{flag.name}={','.join(flag.value)} must be whole numbers."
        ) from None
