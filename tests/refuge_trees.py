"""Small REFUGE trees as people keep them, from drawn fundi in odd sizes.

A tree is a dict from relative path to contents, so that a test can change one file
before it writes the tree.
"""

import dataclasses
import functools
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
import openpyxl
from PIL import Image

from mtl_jax.data.synthetic import renderer
from mtl_jax.data.synthetic.camera import EVALUATION_CAMERA, TRAINING_CAMERA

Tree = dict[str, bytes]

# Native sizes (height, width) are odd on purpose, and not those of the model images.
STEMS = {
    "train": ("g0001", "g0002", "n0001", "n0002", "n0003"),
    "validation": ("V0001", "V0002", "V0003"),
    "test": ("T0001", "T0002", "T0003"),
}
SIZES = {"train": (53, 47), "validation": (61, 59), "test": (59, 61)}
GLAUCOMA = {"g0001", "g0002", "V0002", "T0001"}

FOLDERS = {
    "train": ("Training400", "Annotation-Training400"),
    "validation": ("REFUGE-Validation400", "REFUGE-Validation400-GT"),
    "test": ("Test400", "REFUGE-Test-GT"),
}
ARCHIVES = {
    "Training400": "REFUGE-Training400.zip",
    "Annotation-Training400": "Annotation-Training400.zip",
    "REFUGE-Validation400": "REFUGE-Validation400.zip",
    "REFUGE-Validation400-GT": "REFUGE-Validation400-GT.zip",
    "Test400": "REFUGE-Test400.zip",
    "REFUGE-Test-GT": "REFUGE-Test-GT.zip",
}
SPREADSHEETS = {
    "train": "Fovea_location.xlsx",
    "validation": "Fovea_locations.xlsx",
    "test": "Glaucoma_label_and_Fovea_location.xlsx",
}
HEADS = {
    "train": ("ID", "ImgName", "Fovea_X", "Fovea_Y"),
    "validation": ("ID", "ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"),
    "test": ("ID", "ImgName", "Label(Glaucoma=1)", "Fovea_X", "Fovea_Y"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Eye:
    """One photograph as the challenge has it: JPEG, and a mask of 0, 128 and 255."""

    stem: str
    split: str
    jpeg: bytes
    mask: np.ndarray
    glaucoma: int
    fovea_xy: tuple[float, float]

    @property
    def size(self):
        return self.mask.shape

    @property
    def label_folder(self):
        return "Glaucoma" if self.glaucoma else "Non-Glaucoma"


@functools.cache
def eyes() -> dict[str, Eye]:
    """The eyes of all trees, by stem."""
    drawn = {}
    for split, stems in STEMS.items():
        for stem in stems:
            rng = np.random.default_rng([len(drawn), 7])
            camera = TRAINING_CAMERA if split == "train" else EVALUATION_CAMERA
            fundus = renderer.render(rng, SIZES[split], camera, stem in GLAUCOMA)
            mask = np.select([fundus.cup_mask > 0, fundus.disc_mask > 0], [0, 128], 255)
            drawn[stem] = Eye(
                stem,
                split,
                encode(fundus.photograph, "JPEG", quality=92),
                mask.astype(np.uint8),
                int(stem in GLAUCOMA),
                tuple(round(float(value), 2) for value in fundus.fovea_xy),
            )
    return drawn


def encode(array: np.ndarray, kind: str, **options) -> bytes:
    """An array as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def spreadsheet(split: str, members: Iterable[Eye], extension: str = ".jpg") -> bytes:
    """The challenge's table of one split."""
    book = openpyxl.Workbook()
    book.active.append(HEADS[split])
    for number, eye in enumerate(members, start=1):
        label = [] if split == "train" else [eye.glaucoma]
        book.active.append([number, eye.stem + extension, *label, *eye.fovea_xy])
    return book_bytes(book)


def book_bytes(book: openpyxl.Workbook) -> bytes:
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def index_json(members: Iterable[Eye]) -> bytes:
    """The table of the repacked copies."""
    entries = {}
    for eye in members:
        height, width = eye.size
        entries[str(len(entries))] = {
            "ImgName": f"{eye.stem}.jpg",
            "Fovea_X": eye.fovea_xy[0],
            "Fovea_Y": eye.fovea_xy[1],
            "Size_X": width,
            "Size_Y": height,
            "Label": eye.glaucoma,
        }
    return json.dumps(entries).encode()


def _of(split: str) -> list[Eye]:
    return [eye for eye in eyes().values() if eye.split == split]


def official() -> Tree:
    """The six official archives, each unpacked."""
    tree = {}
    for split, (photographs, annotations) in FOLDERS.items():
        tree[f"{annotations}/{SPREADSHEETS[split]}"] = spreadsheet(split, _of(split))
        for eye in _of(split):
            mask_folder = photo_folder = ""
            if split == "train":
                mask_folder = photo_folder = f"{eye.label_folder}/"
            elif split == "test":
                mask_folder = "G/" if eye.glaucoma else "N/"
            tree[f"{photographs}/{photo_folder}{eye.stem}.jpg"] = eye.jpeg
            mask = f"{annotations}/Disc_Cup_Masks/{mask_folder}{eye.stem}.bmp"
            tree[mask] = encode(eye.mask, "BMP")
    return tree


def archived(tree: Tree | None = None) -> Tree:
    """The six official archives as they are downloaded."""
    members: dict[str, Tree] = {}
    for path, contents in (tree or official()).items():
        members.setdefault(ARCHIVES[path.split("/")[0]], {})[path] = contents
    return {name: zip_bytes(inside) for name, inside in members.items()}


def zip_bytes(tree: Tree) -> bytes:
    """A tree as a zip archive, with an entry for each folder as most programs write."""
    buffer = io.BytesIO()
    folders = {str(parent) for path in tree for parent in _parents(path)}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in sorted(folders):
            archive.writestr(f"{folder}/", b"")
        for path, contents in tree.items():
            archive.writestr(path, contents)
    return buffer.getvalue()


def _parents(path: str) -> list[pathlib.PurePosixPath]:
    return list(pathlib.PurePosixPath(path).parents)[:-1]


def renamed(change: Callable[[str], str], tree: Tree | None = None) -> Tree:
    """The official tree, or another, with every path changed."""
    return {change(path): data for path, data in (tree or official()).items()}


def extra_level() -> Tree:
    return renamed(lambda path: f"{path.split('/')[0]}/{path}")


def flat_test_masks() -> Tree:
    return renamed(lambda path: path.replace("/G/", "/").replace("/N/", "/"))


def refuge2_bundle() -> Tree:
    """REFUGE2's download, which has photographs of its own beside those of REFUGE1."""
    places = {
        "Training400": "Train/REFUGE1-train/Training400",
        "Annotation-Training400": "Train/REFUGE1-train",
        "REFUGE-Validation400": "Train/REFUGE1-val/REFUGE-Validation400",
        "REFUGE-Validation400-GT": "Train/REFUGE1-val",
        "Test400": "Train/REFUGE1-test/Test400",
        "REFUGE-Test-GT": "Train/REFUGE1-test",
    }

    def place(path):
        folder, rest = path.split("/", 1)
        return f"REFUGE2/{places[folder]}/{rest}"

    other = eyes()["T0002"].jpeg
    return {
        **renamed(place),
        "REFUGE2/Validation/Images/V0401.jpg": other,
        "REFUGE2/Test/Images/T0799.jpg": other,
        "REFUGE2-Validation/V0001.jpg": other,
        "REFUGE2-Validation/Disc_Cup_Masks/V0001.bmp": b"another eye's",
        "REFUGE2-Validation/Fovea_locations.xlsx": spreadsheet(
            "validation", [dataclasses.replace(eyes()["V0001"], fovea_xy=(1, 1))]
        ),
    }


def numbered_folders() -> Tree:
    """Photographs without the label in their path."""
    return renamed(
        lambda path: (
            path.replace("Training400/Glaucoma", "REFUGE1-Train-400/Images")
            .replace("Training400/Non-Glaucoma", "REFUGE1-Train-400/Images")
            .replace("Test400", "REFUGE1-Test-400/Images")
            if path.endswith(".jpg")
            else path.replace("Annotation", "REFUGE1-Train-400/Annotation")
        )
    )


def repack(photographs: str, masks: str, kind: str) -> Tree:
    """One folder per split with a JSON table."""
    tree = {}
    for folder, split in zip(("train", "val", "test"), STEMS, strict=True):
        tree[f"{folder}/index.json"] = index_json(_of(split))
        for eye in _of(split):
            tree[f"{folder}/{photographs}/{eye.stem}.jpg"] = eye.jpeg
            mask = f"{folder}/{masks}/{eye.stem}.{kind}"
            tree[mask] = encode(eye.mask, kind.upper())
    return tree


def upper_case() -> Tree:
    """Extensions in upper case, and names in the tables without any."""

    def change(path):
        stem, extension = path.rsplit(".", 1)
        return f"{stem}.{extension.upper()}"

    tree = renamed(change)
    for split, (_, annotations) in FOLDERS.items():
        path = change(f"{annotations}/{SPREADSHEETS[split]}")
        tree[path] = spreadsheet(split, _of(split), extension="")
    return tree


def littered() -> Tree:
    """What systems and people leave behind, with names that could mislead."""
    notes = openpyxl.Workbook()
    notes.active.append(("Image", "Quality"))
    notes.active.append(("V0001.jpg", "good"))
    drawing = eyes()["T0003"].jpeg
    return {
        **official(),
        ".DS_Store": b"\0\0\0\1Bud1",
        "Training400/.DS_Store": b"\0\0\0\1Bud1",
        "Training400/Glaucoma/._g0001.jpg": b"\0\5\26\7",
        "__MACOSX/Training400/Glaucoma/._g0001.jpg": b"\0\5\26\7",
        "__MACOSX/Test400/T0001.jpg": b"\0\5\26\7",
        "Test400/Thumbs.db": b"thumbs",
        "Annotation-Training400/~$Fovea_location.xlsx": b"locked",
        "Annotation-Training400/Disc_Cup_Fovea_Illustration/g0001.jpg": drawing,
        "Test400/README.txt": b"T0001.jpg",
        "Test400/cat.jpg": b"no jpeg at all",
        "Test400/T0001_crop.jpg": drawing,
        "notes.xlsx": book_bytes(notes),
        "package.json": b"{",
    }


ARRANGEMENTS: dict[str, Callable[[], Tree]] = {
    "official": official,
    "archives": archived,
    "extra level": extra_level,
    "flat test masks": flat_test_masks,
    "REFUGE2 bundle": refuge2_bundle,
    "REFUGE2 bundle in one archive": lambda: {"all.ZIP": zip_bytes(refuge2_bundle())},
    "numbered folders": numbered_folders,
    "repack, BMP": lambda: repack("Images", "gts", "bmp"),
    "repack, PNG": lambda: repack("images", "seg", "png"),
    "upper case": upper_case,
    "litter": littered,
    "litter in archives": lambda: {
        "Test.zip": zip_bytes(
            {p: d for p, d in littered().items() if not p.startswith("Training")}
        ),
        **{p: d for p, d in littered().items() if p.startswith("Training")},
    },
    "archives beside unpacked": lambda: {**official(), **archived()},
    "masks in two formats": lambda: {
        **official(),
        **{p: d for p, d in repack("Images", "seg", "png").items() if "/seg/" in p},
    },
}


def full_official() -> Tree:
    """All 1200 photographs with all annotations, as archives: many times one eye."""
    tree = {}
    model = eyes()["V0001"]
    bmp = encode(model.mask, "BMP")
    for split, (photographs, annotations) in FOLDERS.items():
        if split == "train":
            stems = [f"g{i:04d}" for i in range(1, 41)]
            stems += [f"n{i:04d}" for i in range(1, 361)]
        else:
            stems = [f"{split[0].upper()}{i:04d}" for i in range(1, 401)]
        members = []
        for i, stem in enumerate(stems):
            # Every tenth, where the names do not say it.
            glaucoma = int(stem[0] == "g" if split == "train" else i % 10 == 0)
            eye = dataclasses.replace(model, stem=stem, glaucoma=glaucoma)
            members.append(eye)
            folder = f"{eye.label_folder}/" if split == "train" else ""
            tree[f"{photographs}/{folder}{stem}.jpg"] = eye.jpeg
            tree[f"{annotations}/Disc_Cup_Masks/{folder}{stem}.bmp"] = bmp
        tree[f"{annotations}/{SPREADSHEETS[split]}"] = spreadsheet(split, members)
    return tree


def write(tree: Tree, folder: pathlib.Path) -> pathlib.Path:
    """Writes a tree below a folder, which is made if need be."""
    for path, contents in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(contents)
    return folder
