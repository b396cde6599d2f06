"""Joins photographs with annotations, and finds what is missing or contradictory.

Images are decoded only to compare several copies of one file.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mtl_jax.data import building, images
from mtl_jax.data.refuge.files import SourceFile, some
from mtl_jax.data.refuge.labels import Spreadsheet, Statement, read_spreadsheet
from mtl_jax.data.refuge.layout import Layout, folder_label
from mtl_jax.data.refuge.official import GLAUCOMA, SPLITS, label_of, split_of
from mtl_jax.errors import UserError

# Copies of the spreadsheets round coordinates [pixels].
_SAME_FOVEA = 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """One photograph and its annotations; an absent one is None.

    Attributes:
      stem: official stem of the photograph.
      photograph: its file.
      mask: file with both structures, in REFUGE's values.
      glaucoma: 1 for glaucoma, 0 for healthy.
      fovea_xy: (x, y) = (column, row) in native pixels.
      sides: the photograph's sides in pixels in a spreadsheet, the shorter first.
    """

    stem: str
    photograph: SourceFile
    mask: SourceFile | None = None
    glaucoma: float | None = None
    fovea_xy: tuple[float, float] | None = None
    sides: tuple[int, int] | None = None

    @property
    def split(self) -> str:
        """Its split."""
        split = split_of(self.stem)
        assert split is not None, "the stem is official"
        return split


@dataclasses.dataclass(frozen=True)
class Survey:
    """The photographs and annotations of a source.

    Attributes:
      cases: the photographs, in official order.
      problems: sentences about what is missing or contradictory.
      found: a table of the numbers in each split.
    """

    cases: list[Case]
    problems: list[str]
    found: str


def survey(layout: Layout) -> Survey:
    """Joins photographs with their annotations.

    If sources contradict each other, the annotation or photograph is left out, and the
    contradiction is one of the problems.
    """
    sheets = [read_spreadsheet(file) for file in layout.tables]
    statements = [statement for sheet in sheets for statement in sheet.statements]
    problems = [problem for sheet in sheets for problem in sheet.problems]
    photographs, contradictions = _resolve(layout.photographs, images.read_photograph)
    masks, others = _resolve(layout.masks, _structures)
    contradictions += others
    labels, others = _labels(layout, statements)
    contradictions += others
    foveas, others = _foveas(statements)
    contradictions += others
    sides = {s.stem: s.sides for s in reversed(statements) if s.sides is not None}
    there = {
        "photographs": photographs,
        "masks": masks,
        "glaucoma labels": labels,
        "foveas": foveas,
    }
    problems += _missing(there)
    problems += _without_columns(sheets, there)
    problems += contradictions
    stems = [stem for split in SPLITS.values() for stem in split.stems]
    cases = [
        Case(
            stem,
            photograph,
            mask=masks.get(stem),
            glaucoma=labels.get(stem),
            fovea_xy=foveas.get(stem),
            sides=sides.get(stem),
        )
        for stem in stems
        if (photograph := photographs.get(stem)) is not None
    ]
    return Survey(cases, problems, _found(there))


def _resolve(
    by_stem: Mapping[str, list[SourceFile]],
    decode: Callable[[str, bytes], np.ndarray],
) -> tuple[dict[str, SourceFile | None], list[str]]:
    """Chooses one file for each stem; None if several differ."""
    chosen: dict[str, SourceFile | None] = {
        stem: files[0] for stem, files in by_stem.items()
    }
    several = {stem: files for stem, files in by_stem.items() if len(files) > 1}
    if not several:
        return chosen, []
    differences = building.parallel_map(
        functools.partial(_difference, decode=decode),
        list(several.values()),
        "comparing copies",
        processes=True,
    )
    problems = []
    for stem, difference in zip(several, differences, strict=True):
        if difference:
            chosen[stem] = None
            problems.append(difference)
    return chosen, problems


def _difference(
    files: list[SourceFile], decode: Callable[[str, bytes], np.ndarray]
) -> str | None:
    """Compares files that should be copies: a sentence if they differ, else None."""
    try:
        contents = [file.read_bytes() for file in files]
        if all(other == contents[0] for other in contents[1:]):
            return None
        # The same pixels may be stored in two formats.
        first, *others = (
            decode(file.name, data) for file, data in zip(files, contents, strict=True)
        )
    except UserError as error:
        return str(error)
    if all(np.array_equal(first, other) for other in others):
        return None
    names = " and ".join(file.name for file in files)
    return f"{names} differ; the official set has one of them; remove the others."


def _structures(name: str, contents: bytes) -> np.ndarray:
    """Decodes optic disc and cup of a mask, uint8 [2, H, W]."""
    return np.stack(images.disc_and_cup_masks(images.read_mask(name, contents)))


def _labels(
    layout: Layout, statements: Iterable[Statement]
) -> tuple[dict[str, float | None], list[str]]:
    """Joins the glaucoma labels; None where sources contradict each other."""
    votes: dict[str, dict[float, str]] = {}

    def vote(stem: str, label: float | None, who: str) -> None:
        if label is not None:
            votes.setdefault(stem, {}).setdefault(label, who)

    for stem in SPLITS["train"].stems:
        vote(stem, label_of(stem), "its name")
    for by_stem in (layout.photographs, layout.masks):
        for stem, files in by_stem.items():
            for file in files:
                vote(stem, folder_label(file), file.name)
    for statement in statements:
        vote(statement.stem, statement.glaucoma, statement.where)
    labels = {s: next(iter(v)) if len(v) == 1 else None for s, v in votes.items()}
    problems = [
        f"{stem} has glaucoma according to {who[1.0]}, but is healthy according to "
        f"{who[0.0]}; the official set has one label for each photograph."
        for stem, who in votes.items()
        if len(who) > 1
    ]
    for name, split in SPLITS.items():
        known = [x for stem in split.stems if (x := labels.get(stem)) is not None]
        if len(known) == len(split.stems) and sum(known) != GLAUCOMA:
            problems.append(
                f"{name} has {sum(known):g} photographs labelled glaucoma; the "
                f"official set has {GLAUCOMA}."
            )
    return labels, problems


def _foveas(
    statements: Iterable[Statement],
) -> tuple[dict[str, tuple[float, float] | None], list[str]]:
    """Joins the foveas; None where they contradict each other or are at (0, 0)."""
    said: dict[str, list[tuple[str, tuple[float, float]]]] = {}
    for statement in statements:
        if (xy := statement.fovea_xy) is not None:
            said.setdefault(statement.stem, []).append((statement.where, xy))
    foveas: dict[str, tuple[float, float] | None] = {}
    problems = []
    for stem, ((where, xy), *others) in said.items():
        foveas[stem] = xy
        for elsewhere, other in others:
            if math.dist(xy, other) > _SAME_FOVEA:
                foveas[stem] = None
                problems.append(
                    f"{where} has the fovea of {stem} at {_point(xy)}, but "
                    f"{elsewhere} at {_point(other)}; the official set has one."
                )
                break
        if xy == (0, 0):
            foveas[stem] = None
            problems.append(
                f"{where} has the fovea of {stem} at (0, 0), the image's corner; "
                "the official set has a fovea inside each photograph."
            )
    return foveas, problems


def _point(xy: tuple[float, float]) -> str:
    x, y = xy
    return f"({x:g}, {y:g})"


def _missing(there: Mapping[str, Mapping[str, object]]) -> list[str]:
    """A sentence for each split and kind that is not complete."""
    problems = []
    for name, split in SPLITS.items():
        where = f"{split.annotations} has them in {split.spreadsheet}"
        official = {
            "photographs": f"{split.photographs} has {split.range}",
            "masks": f"{split.annotations} has one for each photograph",
            "glaucoma labels": where,
            "foveas": where,
        }
        for kind, by_stem in there.items():
            extension = "bmp" if kind == "masks" else "jpg"
            absent = [f"{s}.{extension}" for s in split.stems if s not in by_stem]
            if absent:
                problems.append(
                    f"{name} lacks {len(absent)} of {len(split.stems)} {kind} "
                    f"({some(absent)}); the official {official[kind]}."
                )
    return problems


def _without_columns(
    sheets: Iterable[Spreadsheet], there: Mapping[str, Mapping[str, object]]
) -> list[str]:
    """A sentence for each spreadsheet that may explain why a split has no annotations.

    A spreadsheet without REFUGE's columns is no problem if others have what it lacks.
    """
    problems: dict[str, str] = {}
    for name, split in SPLITS.items():
        stems = set(split.stems)
        if not stems & there["photographs"].keys():
            continue
        for kind in ("foveas", "glaucoma labels"):
            if stems & there[kind].keys():
                continue
            for sheet in sheets:
                reason = sheet.lacks(kind)
                if reason and {split_of(s.stem) for s in sheet.statements} <= {name}:
                    problems.setdefault(
                        sheet.name,
                        f"{sheet.name} {reason}; the official {split.spreadsheet} has "
                        f"the columns {', '.join(split.columns)}.",
                    )
    return list(problems.values())


def _found(there: Mapping[str, Mapping[str, object]]) -> str:
    """A table of the numbers of photographs and annotations in each split."""
    lines = [f"{'':12}{'images':>8}{'glaucoma':>10}{'masks':>8}{'foveas':>8}"]
    for name, split in SPLITS.items():
        counts = {
            kind: sum(by_stem.get(stem) is not None for stem in split.stems)
            for kind, by_stem in there.items()
        }
        glaucoma = sum(
            there["glaucoma labels"].get(stem) == 1
            for stem in split.stems
            # In the training split, names also tell the labels of absent photographs.
            if name != "train" or stem in there["photographs"]
        )
        lines.append(
            f"{name:12}{counts['photographs']:8}{glaucoma:10}{counts['masks']:8}"
            f"{counts['foveas']:8}"
        )
    return "\n".join(lines)
