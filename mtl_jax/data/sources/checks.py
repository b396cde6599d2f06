"""What may be wrong with the files of a source, named before anything is built.

Most problems must be corrected. Those of a kind in `KINDS` may be meant, since some
photograph somewhere is like that; a user says so by the kind's name.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from mtl_jax.data import building, field_of_view, images
from mtl_jax.data.sources.masks import VALUES, MaskFile
from mtl_jax.data.sources.rows import Contents, Problem, Row, identity, report
from mtl_jax.errors import UserError

# Grey values: noise on a flat part of a mask in JPEG, the range of a flat part, and the
# spread of the channels of a colour. Pixels that noise reaches beside an edge: JPEG's
# blocks have eight.
_NOISE, _FLAT, _COLOURED, _EDGE = 16, 8, 32, 8
# Shares of the inside that may be of no level, or of one that is hardly there, and of a
# mask that may be coloured.
_OTHER_LEVEL, _STRAY = 0.01, 1e-4
# The smallest disc, in short sides of the photograph. A seventh is usual.
_TINY = 0.02
# Share of the cup that is in the disc.
_IN_DISC = 0.8
# How far outside the field of view a fovea may be, in short sides of the photograph.
_MARGIN = 0.02
# Where foveas are, beside and below the disc's centre, how far from the median of all
# they may be, in disc diameters, and of how many there is a median. REFUGE's are 2.6
# and 0.4 of them away.
_USUAL, _FAR, _ENOUGH = (2.6, 0.4), 1.5, 5


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """A decoded mask, as checks see it.

    Attributes:
      column: `disc_mask`, `cup_mask` or `mask`.
      file: where it is from.
      picture: its pixels as the file has them, with colours and transparency.
      values: uint8 [h, w], its grey values.
      photograph: uint8 [H, W, 3].
      disc: beside a cup, the mask of the disc, bool [H, W], if there is one.
    """

    column: str
    file: MaskFile
    picture: Image.Image
    values: np.ndarray
    photograph: np.ndarray
    disc: np.ndarray | None = None

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Number of pixels of each grey value, [256]."""
        # NumPy would make 64-bit numbers of all pixels first.
        return np.array(Image.fromarray(self.values).histogram())

    @functools.cached_property
    def levels(self) -> np.ndarray:
        """See `MaskFile.levels`."""
        return self.file.levels(self.values)

    @functools.cached_property
    def inside(self) -> np.ndarray:
        """Bool [h, w]."""
        return self.levels > 0

    @functools.cached_property
    def area(self) -> int:
        """Number of pixels inside."""
        return int(np.count_nonzero(self.inside))

    @property
    def share(self) -> float:
        """Share of the pixels that are inside."""
        return self.area / self.values.size

    @property
    def expected(self) -> str:
        """What its values must be."""
        return VALUES[self.file.reading]


class Check(NamedTuple):
    """Something about a mask that is hardly ever meant.

    Attributes:
      kind: its name in `--accept`.
      sentence: what is wrong, after the name of the mask `m`, and what to do.
      is_found: the predicate.
    """

    kind: str
    sentence: str
    is_found: Callable[[Mask], bool]


def _is_photograph(mask: Mask) -> bool:
    # Comparing takes long, and a mask has few values.
    if np.count_nonzero(mask.counts) <= 2:
        return False
    grey = np.asarray(Image.fromarray(mask.photograph).convert("L"))
    return np.array_equal(grey, mask.values)


def _is_in_alpha(mask: Mask) -> bool:
    bands = dict(zip(mask.picture.getbands(), mask.picture.split(), strict=True))
    alpha = bands.pop("A", None)
    return (
        alpha is not None
        and np.ptp(alpha.getextrema()) > 0
        and all(np.ptp(band.getextrema()) == 0 for band in bands.values())
    )


def _has_colours(mask: Mask) -> bool:
    if mask.file.reading == "labels" or mask.picture.mode in ("1", "L", "LA"):
        return False
    channels = np.asarray(mask.picture.convert("RGB"))
    spread = channels.max(-1) - channels.min(-1)
    return np.count_nonzero(spread > _COLOURED) > _STRAY * spread.size


def _has_other_levels(mask: Mask) -> bool:
    """Whether values are neither levels nor noise at an edge between two of them.

    Values of no level are not noise where they are flat, or far from an edge.
    """
    counts = mask.counts
    if mask.file.reading == "refuge":
        known = np.array([0, 128, 255])
    elif mask.file.reading == "binary":
        cut = 1 if mask.values.max() == 1 else 128
        known = np.array([_median(counts[:cut]), cut + _median(counts[cut:])])
    else:
        return False
    distance = np.abs(np.arange(256)[:, None] - known).min(1)
    if not counts[distance > _NOISE].any():
        return False
    rows, columns = np.nonzero((distance > _NOISE)[mask.values])
    part = tuple(
        slice(max(0, places.min() - _EDGE), places.max() + _EDGE + 1)
        for places in (rows, columns)
    )
    values, levels = mask.values[part], mask.levels[part]
    other = (distance > _NOISE)[values]
    flat = _range(values, 3) <= _FLAT
    # Beyond half way between noise and the middle of two levels.
    far = (distance > np.diff(known).min() / 4)[values]
    far &= _range(levels, 2 * _EDGE + 1) == 0
    return bool(np.count_nonzero(other & (flat | far)) > _OTHER_LEVEL * mask.area)


def _median(counts: np.ndarray) -> int:
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))


def _range(values: np.ndarray, size: int) -> np.ndarray:
    largest = ndimage.maximum_filter(values, size)
    return largest - ndimage.minimum_filter(values, size)


def _has_one_structure(mask: Mask) -> bool:
    if mask.file.reading != "refuge":
        return False
    cup = np.count_nonzero(mask.levels > 1)
    # Smooth edges of a cup or of a disc alone have a few pixels of a rim.
    return bool(min(cup, mask.area - cup) < _OTHER_LEVEL * mask.area)


def _is_tiny(mask: Mask) -> bool:
    diameter = 2 * np.sqrt(mask.area / np.pi)
    is_small = 0 < diameter < _TINY * min(mask.values.shape)
    return mask.column != "cup_mask" and is_small


def _is_outside_disc(mask: Mask) -> bool:
    if mask.disc is None or mask.disc.shape != mask.inside.shape:
        return False
    within = np.count_nonzero(mask.inside & mask.disc)
    # A disc that takes the cup's place may lie in it nearly whole.
    is_larger = mask.area > np.count_nonzero(mask.disc)
    return bool(is_larger or within < _IN_DISC * mask.area)


# The first that is found is named.
CHECKS = (
    Check(
        "photograph_as_mask",
        "is the photograph itself; name its mask",
        _is_photograph,
    ),
    Check(
        "alpha",
        "has one colour everywhere, and its shape in its transparency, which is not "
        "read; save the shape in black and white",
        _is_in_alpha,
    ),
    Check(
        "colours",
        "has colours, of which only the brightness counts; save it in grey, with the "
        "values {m.expected}",
        _has_colours,
    ),
    Check(
        "empty_mask",
        "has no pixel inside; leave the cell empty if it is not annotated",
        lambda mask: not (mask.area or mask.values.any()),
    ),
    Check(
        "large_mask",
        "covers {m.share:.0%} of the photograph; its values must be {m.expected}",
        lambda mask: mask.share > 0.5,
    ),
    Check(
        "grey_levels",
        "has areas of other values; they must be {m.expected}",
        _has_other_levels,
    ),
    Check(
        "one_structure",
        "has a disc without a cup or without a rim, like a disc_mask; its values must "
        "be {m.expected}",
        _has_one_structure,
    ),
    Check(
        "tiny_disc",
        "has an area of {m.area} pixels, too small for an optic disc; fill its outline",
        _is_tiny,
    ),
    Check(
        "cup_outside_disc",
        "does not lie in the disc of its disc_mask, as if the two were swapped; name "
        "the right files",
        _is_outside_disc,
    ),
)

FOVEA_AT_ORIGIN, FOVEA_OUTSIDE = "fovea_at_origin", "fovea_outside_field"
FOVEA_FAR, TWO_SPLITS, TWO_DIAGNOSES = "fovea_far", "two_splits", "two_diagnoses"

KINDS = (
    *(check.kind for check in CHECKS),
    FOVEA_AT_ORIGIN,
    FOVEA_OUTSIDE,
    FOVEA_FAR,
    TWO_SPLITS,
    TWO_DIAGNOSES,
)


class Examined(NamedTuple):
    """What the files of a row say.

    Attributes:
      row: the row.
      problems: what is wrong with it.
      digest: of the photograph's pixels; empty if it cannot be read.
      fovea: how far it is beside the disc's centre and below it, in disc diameters;
        None without fovea or disc, or if one of them has a problem.
    """

    row: Row
    problems: list[Problem]
    digest: bytes = b""
    fovea: tuple[float, float] | None = None


def check(found: Sequence[Contents], accept: Set[str] = frozenset()) -> None:
    """Decodes every file that sources name, and looks for what may be wrong.

    Args:
      found: the sources of one data set.
      accept: those of `KINDS` that are meant.

    Raises:
      UserError: with a list of all problems, those of the tables too.
    """
    every: list[tuple[Contents, Examined]] = []
    for contents in found:
        per_row = building.parallel_map(
            functools.partial(examine, accept=accept),
            contents.rows,
            "checking files",
            processes=False,
        )
        every += [(contents, examined) for examined in per_row]
    for contents, examined in every:
        contents.problems += examined.problems
    for contents, problem in (*_far_foveas(every), *_same_photographs(every)):
        if problem.kind not in accept:
            contents.problems.append(problem)
    if reports := [report(contents) for contents in found if contents.problems]:
        kinds = {p.kind for contents in found for p in contents.problems} - {""}
        if kinds:
            reports.append(
                f"If they are meant, say so by --accept={','.join(sorted(kinds))}."
            )
        raise UserError("\n".join(reports))


def examine(row: Row, accept: Set[str] = frozenset()) -> Examined:
    """Decodes the files of a row."""
    problems: list[tuple[str, str]] = []
    photograph = None
    try:
        photograph = images.read_photograph(row.image)
    except UserError as error:
        problems.append((str(error), ""))
    else:
        problems += _fovea_problems(row, photograph)
    masks: dict[str, Mask] = {}
    for column, file in row.mask_files.items():
        # Without its photograph a contour has no size.
        if photograph is None and file.reading == "contours":
            continue
        try:
            picture = file.picture((1, 1) if photograph is None else photograph.shape)
        except UserError as error:
            problems.append((str(error), ""))
            continue
        if photograph is not None:
            disc = masks["disc_mask"].inside if "disc_mask" in masks else None
            values = images.grey_values(picture)
            masks[column] = Mask(column, file, picture, values, photograph, disc)
            problems += _mask_problems(masks[column], accept)
    named = [Problem(row.number, *p) for p in problems if p[1] not in accept]
    if photograph is None:
        return Examined(row, named)
    digest = hashlib.blake2b(photograph.data, digest_size=16)
    digest.update(repr(photograph.shape).encode())
    annotated = masks.get("disc_mask", masks.get("mask"))
    fovea = None if problems else _fovea_from_disc(row, annotated)
    return Examined(row, named, digest.digest(), fovea)


def _fovea_problems(row: Row, photograph: np.ndarray) -> Iterator[tuple[str, str]]:
    """Yields texts and kinds; what must be corrected is of none."""
    if row.fovea_xy is None:
        return
    height, width = photograph.shape[:2]
    x, y = row.fovea_xy
    fovea = f"the fovea ({x:g}, {y:g})"
    field = field_of_view.find(Image.fromarray(photograph))
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
        yield (
            f"{fovea} lies outside {row.image}, which has {width} x {height} pixels; "
            "give x (column), y (row) in pixels of this file.",
            "",
        )
    elif x == y == 0:
        yield (
            f"{fovea} is the first pixel of {row.image}; leave the cells empty if it is"
            f" not annotated ({FOVEA_AT_ORIGIN}).",
            FOVEA_AT_ORIGIN,
        )
    elif not field.contains((x, y), _MARGIN * min(height, width)):
        yield (
            f"{fovea} lies outside the field of view of {row.image}; give x (column), y"
            f" (row) in pixels of this file ({FOVEA_OUTSIDE}).",
            FOVEA_OUTSIDE,
        )


def _fovea_from_disc(row: Row, disc: Mask | None) -> tuple[float, float] | None:
    if row.fovea_xy is None or disc is None or not disc.area:
        return None
    y, x = (float(places.mean()) for places in np.nonzero(disc.inside))
    diameter = 2 * np.sqrt(disc.area / np.pi)
    return abs(row.fovea_xy[0] - x) / diameter, (row.fovea_xy[1] - y) / diameter


def _far_foveas(
    every: Sequence[tuple[Contents, Examined]],
) -> Iterator[tuple[Contents, Problem]]:
    """Foveas whose place beside the disc is far from that of all others'."""
    there = [(c, e.row, e.fovea) for c, e in every if e.fovea is not None]
    if len(there) < _ENOUGH:
        return
    places = np.array([place for *_, place in there])
    usual = np.median(places, axis=0)
    # Straight below or above the disc there is no fovea, unless all are swapped.
    if usual[0] < abs(usual[1]):
        usual = np.array(_USUAL)
    distances = np.linalg.norm(places - usual, axis=1)
    for (contents, row, place), distance in zip(there, distances, strict=True):
        if distance > _FAR:
            text = (
                f"the fovea {row.fovea_xy} lies {place[0]:.1f} disc diameters beside "
                f"the disc of {row.image} and {place[1]:.1f} below it; usual is "
                f"{usual[0]:.1f} beside and {usual[1]:.1f} below; give x (column), y "
                f"(row) ({FOVEA_FAR})."
            )
            yield contents, Problem(row.number, text, FOVEA_FAR)


def _same_photographs(
    every: Sequence[tuple[Contents, Examined]],
) -> Iterator[tuple[Contents, Problem]]:
    """Photographs with the same pixels, but another split or another diagnosis."""
    earlier: dict[bytes, list[tuple[str, Row]]] = {}
    for contents, examined in every:
        row = examined.row
        copies = earlier.setdefault(examined.digest, []) if examined.digest else []
        for attribute, what, kind in (
            ("split", "split", TWO_SPLITS),
            ("glaucoma", "diagnosis", TWO_DIAGNOSES),
        ):
            mine = getattr(row, attribute)
            for where, other in copies:
                theirs = getattr(other, attribute)
                # Two paths to one file are named as such.
                if (
                    None not in (mine, theirs)
                    and mine != theirs
                    and identity(row.image) != identity(other.image)
                ):
                    text = (
                        f"{row.image} has the pixels of {other.image} ({where}) and "
                        f"another {what} ({mine}, not {theirs}); keep one of them, or "
                        f"correct the {what} ({kind})."
                    )
                    yield contents, Problem(row.number, text, kind)
                    break
        where = f"{contents.table} row {row.number}" if contents.table else row.image_id
        copies.append((where, row))


def _mask_problems(mask: Mask, accept: Set[str]) -> Iterator[tuple[str, str]]:
    """Yields texts and kinds; what must be corrected is of none."""
    name, largest = mask.file.name, mask.values.max()
    (height, width), size = mask.values.shape, mask.photograph.shape[:2]
    if (height, width) != size:
        yield (
            f"{name} has {width} x {height} pixels, its photograph {size[1]} x "
            f"{size[0]}; a mask must fit pixel by pixel.",
            "",
        )
    unusual = [c for c in CHECKS if c.kind not in accept]
    if mask.file.reading == "classes" and largest > 2:
        yield f"{name} has the value {largest}; its values must be {mask.expected}.", ""
    elif found := next((c for c in unusual if c.is_found(mask)), None):
        yield f"{name} {found.sentence.format(m=mask)} ({found.kind}).", found.kind
    elif not mask.area and largest > 0:
        yield (
            f"no pixel of {name} is inside (its largest value is {largest}); its values"
            f" must be {mask.expected}; leave the cell empty if it is not annotated.",
            "",
        )
