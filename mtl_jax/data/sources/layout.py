"""What is known of the files of a public data set."""

import dataclasses
from collections.abc import Callable

from mtl_jax.data.sources.listing import Listing
from mtl_jax.data.sources.rows import Contents


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of one public data set.

    Attributes:
      photographs: pattern of its photographs, see `Listing.matches`, by which it is
        also recognised.
      looked_for: name of a photograph, for messages.
      labels: of `annotations.LABELS`, what every photograph is annotated with.
      read: finds photographs and annotations. Each row has its official split, or none
        does.
      placed: pattern of the photographs where the published set has them, if that is
        not wherever they are.
    """

    photographs: str
    looked_for: str
    labels: tuple[str, ...]
    read: Callable[[Listing], Contents]
    placed: str = ""
