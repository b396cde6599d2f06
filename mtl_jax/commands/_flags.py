"""Reading the values of flags, with a sentence for each mistake."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from absl import flags

from mtl_jax.errors import UserError

T = TypeVar("T")


def required(flag: flags.FlagHolder[T | None]) -> T:
    """The value of a flag that this use of the command cannot do without.

    Raises:
      UserError: if it was not given.
    """
    if flag.value is None:
        raise UserError(f"--{flag.name} is missing; it is needed here.")
    return flag.value


def whole_numbers(flag: flags.FlagHolder[list[str]]) -> list[int]:
    """The value of a comma-separated list flag as whole numbers.

    Raises:
      UserError: if one of them is not.
    """
    return _parsed(flag, int, "whole numbers")


def numbers(flag: flags.FlagHolder[list[str]]) -> list[float]:
    """The value of a comma-separated list flag as numbers.

    Raises:
      UserError: if one of them is not.
    """
    return _parsed(flag, float, "numbers")


def _parsed(
    flag: flags.FlagHolder[list[str]], kind: Callable[[str], Any], what: str
) -> list[Any]:
    try:
        return [kind(value) for value in flag.value]
    except ValueError:
        raise UserError(
            f"--{flag.name}={','.join(flag.value)} must be {what}."
        ) from None


def check_list(flag: flags.FlagHolder[list[str]], choices: Collection[str]) -> None:
    """Refuses a comma-separated list flag with anything but `choices`.

    Raises:
      UserError: naming what it may hold.
    """
    for value in flag.value:
        if value not in choices:
            raise UserError(
                f"--{flag.name} has {value!r}; choose from {', '.join(choices)}."
            )
