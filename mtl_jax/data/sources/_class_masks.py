"""ORIGA and G1020 as one public bundle has them: Images, Masks of 0, 1, 2, a table."""

from collections.abc import Callable, Mapping
from typing import Any

from mtl_jax.data.sources.listing import Listing, number_of, text_of
from mtl_jax.data.sources.masks import MaskFile
from mtl_jax.data.sources.rows import Contents, Row


def read(
    listing: Listing,
    photographs: str,
    masks: str,
    table: str,
    heads: tuple[str, str],
    prefix: str = "",
    eye_and_split: Callable[[Mapping[str, Any]], tuple[str, str]] = lambda _: ("", ""),
) -> Contents:
    """Reads photographs whose masks have the same stem.

    Args:
      listing: the files.
      photographs: pattern of the photographs, with their stem as its group.
      masks: pattern of the masks, likewise.
      table: pattern of the table.
      heads: its columns with the file's name and the label, see `listing.key_of`.
      prefix: of the photographs' identifiers.
      eye_and_split: reads these from the cells of a row.
    """
    by_stem = listing.find(masks)
    said: dict[str, tuple[float | None, tuple[str, str]]] = {}
    for _, where, cells in listing.records(table, *heads):
        stem = text_of(cells[heads[0]]).lower().rsplit(".", 1)[0]
        said[stem] = (number_of(cells, heads[1], where), eye_and_split(cells))
    contents = Contents([], str(listing.root))
    for (stem,), path in listing.find(photographs).items():
        mask = by_stem.get((stem,))
        glaucoma, (eye, split) = said.get(stem, (None, ("", "")))
        contents.rows.append(
            Row(
                len(contents.rows) + 1,
                prefix + path.stem,
                path,
                mask=MaskFile((mask,), "classes") if mask else None,
                glaucoma=glaucoma,
                split=split,
                eye=eye,
            )
        )
    return contents
