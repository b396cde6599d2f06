"""Reads the values of flags and reports a mistake in one sentence."""

import pathlib
import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from absl import flags

from mtl_jax.errors import UserError

T = TypeVar("T")


def required(flag: flags.FlagHolder[T | None]) -> T:
    """Returns the value of a flag that this use of the command requires.

    Raises:
      UserError: if the flag was not given.
    """
    if flag.value is None:
        raise UserError(f"--{flag.name} is missing; this data set requires it.")
    return flag.value


def workdirs(flag: flags.FlagHolder[str | None]) -> list[pathlib.Path]:
    """Returns the folders that --workdir names; by default, the package's network.

    Commas separate folders, unless the whole value is the name of one.

    Raises:
      UserError: if an entry is empty or names a folder again; or if the flag was not
        given, and the package has no network.
    """
    from mtl_jax.workdirs import BUILT_IN

    if flag.value is not None:
        if flag.value and pathlib.Path(flag.value).is_dir():
            return [pathlib.Path(flag.value)]
        names = [name.strip() for name in flag.value.split(",")]
        if not all(names):
            raise UserError(
                f"--workdir={flag.value} has an empty entry; name the workdir of a run,"
                " or several with commas between them."
            )
        folders = [*map(pathlib.Path, names)]
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise UserError(
                f"--workdir={flag.value} names a folder twice; name each network once."
            )
        return folders
    if not BUILT_IN.is_dir():
        raise UserError(
            "--workdir is missing, and this installation of mtl_jax has no trained "
            "network of its own; name the workdir of a run."
        )
    return [BUILT_IN]


def whole_numbers(flag: flags.FlagHolder[list[str]]) -> list[int]:
    """Reads a comma-separated list flag as whole numbers.

    Raises:
      UserError: if an entry is not a whole number.
    """
    return _parsed(flag, int, "whole numbers")


def numbers(flag: flags.FlagHolder[list[str]]) -> list[float]:
    """Reads a comma-separated list flag as numbers.

    Raises:
      UserError: if an entry is not a number.
    """
    return _parsed(flag, float, "numbers")


def part(flag: flags.FlagHolder[str]) -> tuple[int, int]:
    """Reads a flag such as 2/8, the second of eight parts.

    Raises:
      UserError: if it is no such part.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", flag.value, re.ASCII)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(
            f"--{flag.name}={flag.value} is no part of a whole; write 2/8 for the "
            "second of eight."
        )
    return number, count


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
    """Checks that a comma-separated list flag holds only `choices`.

    Raises:
      UserError: if it holds anything else. The message lists the choices.
    """
    for value in flag.value:
        if value not in choices:
            raise UserError(
                f"--{flag.name} has {value!r}; choose from {', '.join(choices)}."
            )


def all_or_some(
    flag: flags.FlagHolder[list[str]],
    every: Collection[str],
    others: Collection[str] = (),
) -> list[str]:
    """Returns `every` if a comma-separated list flag is `all`, else what it holds.

    Raises:
      UserError: if it holds what is neither in `every` nor in `others`.
    """
    if flag.value == ["all"]:
        return list(every)
    check_list(flag, dict.fromkeys([*every, *others]))
    return flag.value
