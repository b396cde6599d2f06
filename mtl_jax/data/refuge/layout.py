"""Tells what each file of REFUGE is, in any arrangement of folders.

A file's name tells its photograph, and with it the split: each split has its own series
of names. Folders tell whether a file is a photograph or a mask, and often the glaucoma
label.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable

from mtl_jax.data import images
from mtl_jax.data.refuge import official
from mtl_jax.data.refuge.files import SourceFile, some

# Words in the names of folders.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MASKS = {"mask", "masks", "gt", "gts", "groundtruth", "label", "labels"}
_MASKS |= {"seg", "segmentation", "segmentations", "annotation", "annotations"}
_PHOTOGRAPHS = {"image", "images", "img", "imgs", "photo", "photos", "photographs"}
# Photographs with drawn annotations.
_DRAWINGS = {"illustration", "illustrations", "overlay", "overlays"}
_LABELS = {
    **dict.fromkeys(("glaucoma", "glaucomatous"), 1.0),
    **dict.fromkeys(("nonglaucoma", "noglaucoma", "normal", "healthy"), 0.0),
}
_MASK_LABELS = {**_LABELS, "g": 1.0, "n": 0.0}


@dataclasses.dataclass
class Layout:
    """The files of REFUGE. A photograph may have several of a kind.

    Attributes:
      photographs: photographs by official stem, each with the preferred file first.
      masks: masks likewise.
      tables: tables, spreadsheets first.
      refuge2: photographs that only REFUGE2 has.
      misplaced: files in a folder that is named after another split than theirs.
    """

    photographs: dict[str, list[SourceFile]] = dataclasses.field(default_factory=dict)
    masks: dict[str, list[SourceFile]] = dataclasses.field(default_factory=dict)
    tables: list[SourceFile] = dataclasses.field(default_factory=list)
    refuge2: list[SourceFile] = dataclasses.field(default_factory=list)
    misplaced: list[SourceFile] = dataclasses.field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Sentences about what may surprise but is no problem."""
        notes = []
        if self.refuge2:
            notes.append(
                f"{len(self.refuge2)} photographs that only REFUGE2 has are left out "
                f"({some(file.name for file in self.refuge2)})."
            )
        if self.misplaced:
            notes.append(
                f"{len(self.misplaced)} files lie in a folder of another split; their "
                f"names decide to which official split they belong "
                f"({some(file.name for file in self.misplaced)})."
            )
        return notes

    @property
    def fingerprint(self) -> str:
        """A hash of all names and stamps, which changes with the contents."""
        digest = hashlib.sha256()
        for file in sorted(
            (*_all(self.photographs), *_all(self.masks), *self.tables),
            key=lambda file: file.parts,
        ):
            digest.update(f"{file.name} {file.stamp};".encode(errors="replace"))
        return digest.hexdigest()


def sort_files(files: Iterable[SourceFile]) -> Layout:
    """Tells what each file is, and skips files that do not belong to REFUGE."""
    layout = Layout()
    for file in sorted(files, key=lambda file: (file.member is not None, file.parts)):
        kind = _kind(file)
        if kind is None:
            continue
        if kind == "table":
            if not _is_refuge2(file.parts):
                layout.tables.append(file)
            continue
        stem = official.stem_of(file.parts[-1])
        if stem is None:
            continue
        split = official.split_of(stem)
        if split is None or _is_refuge2(file.parts):
            if kind == "photograph":
                layout.refuge2.append(file)
            continue
        if _split_named(file.parts[:-1]) not in (None, split):
            layout.misplaced.append(file)
        by_stem = layout.masks if kind == "mask" else layout.photographs
        by_stem.setdefault(stem, []).append(file)
    layout.tables.sort(key=lambda file: file.suffix != ".xlsx")
    return layout


def folder_label(file: SourceFile) -> float | None:
    """The glaucoma label in the names of folders: 1 for glaucoma, 0 for healthy.

    Folders above that of the split are ignored: they hold both kinds of eyes, even in
    `Glaucoma/REFUGE/Test400`.
    """
    labels = _MASK_LABELS if _kind(file) == "mask" else _LABELS
    for part in reversed(file.parts[:-1]):
        label = labels.get(re.sub(r"[^a-z]", "", part.lower()))
        if label is not None:
            return label
        if _split_named((part,)):
            return None
    return None


def _kind(file: SourceFile) -> str | None:
    """Returns "photograph", "mask", "table", or None for a stray file."""
    if file.suffix == ".xlsx" or file.parts[-1].lower() == "index.json":
        return "table"
    if file.suffix not in images.EXTENSIONS:
        return None
    folders = file.parts[-2::-1]
    if any(_words(folder) & _DRAWINGS for folder in folders):
        return None
    for folder in folders:
        is_mask = bool(_words(folder) & _MASKS)
        if is_mask != bool(_words(folder) & _PHOTOGRAPHS):
            return "mask" if is_mask else "photograph"
        # Masks are hardly ever JPEG, so names of outer folders do not count.
        if file.suffix in (".jpg", ".jpeg") and _split_named((folder,)):
            return "photograph"
    return "mask" if file.suffix == ".bmp" else "photograph"


def _split_named(folders: tuple[str, ...]) -> str | None:
    """The split in the name of the innermost folder that names exactly one split."""
    for part in reversed(folders):
        splits = {_SPLITS[word] for word in _words(part) if word in _SPLITS}
        if len(splits) == 1:
            return splits.pop()
    return None


def _is_refuge2(parts: tuple[str, ...]) -> bool:
    """Whether the folders are those of REFUGE2's own validation and test sets.

    The bundle of REFUGE2 also holds all of REFUGE1.
    """
    for part in reversed(parts[:-1]):
        if re.search(r"refuge[\W_]?2(?!\d)", part, re.IGNORECASE):
            if _split_named((part,)) in ("validation", "test"):
                return True
        elif "refuge" in part.lower():
            return False
    return False


def _words(part: str) -> set[str]:
    """Lower-case words of names such as `Annotation-Training400` and `TestGT`."""
    camel_case = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)
    return {word.lower() for word in [*re.findall("[A-Za-z]+", part), *camel_case]}


def _all(by_stem: dict[str, list[SourceFile]]) -> list[SourceFile]:
    return [file for files in by_stem.values() for file in files]
