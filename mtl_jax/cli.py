"""What all scripts share: how they end."""

import argparse
import logging as standard_logging
import pathlib
import re
import sys
from collections.abc import Callable, Collection
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
            print(
                "interrupted; scripts/train.py goes on by --resume, an experiment by "
                "the same command.",
                file=sys.stderr,
            )
            return 130

    # A file's name need not be text; where it is not, it is shown with escapes.
    sys.stdout.reconfigure(errors="backslashreplace")
    # Orbax reports every save at length.
    logging.set_verbosity(logging.ERROR)
    _hush_tensorstore()
    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags, with a sentence where ml_collections would give a traceback."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    config = parser.parse_known_args(argv[1:])[0].config
    if config is not None and not pathlib.Path(config.split(":")[0]).is_file():
        print(
            f"error: There is no config file {config!r}; see configs/.", file=sys.stderr
        )
        sys.exit(2)
    try:
        return app.parse_flags_with_usage(argv)
    except UserError as error:
        print(f"error: --config={config}: {error}", file=sys.stderr)
        sys.exit(2)
    except (AttributeError, KeyError) as error:
        # Its text begins with the name of the field.
        name = re.search(r"\w*", str(error).lstrip("'\"\\"))[0]
        for argument in argv:
            flag = argument.split("=")[0]
            if name in flag.split(".")[1:]:
                print(
                    f"error: {flag} names a field that the config does not have; "
                    "configs/default.py lists them all.",
                    file=sys.stderr,
                )
                sys.exit(2)
        raise


def _hush_tensorstore() -> None:
    """Silences what TensorStore still has to say after a failed read.

    The failure itself is raised; but other arrays are then on their way to an event
    loop that Orbax has closed, and their tracebacks would follow our sentence.
    """

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)


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
    return _parsed(flag, int, "whole numbers")


def numbers(flag: flags.FlagHolder) -> list[float]:
    """The value of a comma-separated list flag as numbers.

    Raises:
      UserError: if one of them is not.
    """
    return _parsed(flag, float, "numbers")


def _parsed(flag: flags.FlagHolder, kind: Callable[[str], Any], what: str) -> list[Any]:
    try:
        return [kind(value) for value in flag.value]
    except ValueError:
        raise UserError(
            f"--{flag.name}={','.join(flag.value)} must be {what}."
        ) from None


def check_list(flag: flags.FlagHolder, choices: Collection[str]) -> None:
    """Refuses a comma-separated list flag with anything but `choices`.

    Raises:
      UserError: naming what it may hold.
    """
    for value in flag.value:
        if value not in choices:
            raise UserError(
                f"--{flag.name} has {value!r}; choose from {', '.join(choices)}."
            )
