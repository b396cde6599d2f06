"""What a case of the corpus is."""

import dataclasses
from collections.abc import Callable

# A photograph whose row must be that of the plain PNG, number for number; and one that
# a lossy format has changed a little.
SAME, NEAR = "the row of the plain PNG", "nearly the row of the plain PNG"


@dataclasses.dataclass(frozen=True)
class Case:
    """One input and its outcome.

    Attributes:
      name: unique, also in the kind's folder.
      given: the input in words.
      expected: regular expression, found in the sentence that refuses the input, or
        where there is none, in what comes out of it; or `SAME` or `NEAR`.
      code: exit code. Photographs that are refused beside others give 1.
      make: writes the input. Of a photograph it gets the file to write; otherwise the
        `Place`, and returns the command.
    """

    name: str
    given: str
    expected: str
    code: int
    make: Callable
    kind: str = ""
