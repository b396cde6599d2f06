"""Manifests, masks, spreadsheets and archives, of which data sets are built."""

import io
import shutil
import struct
import zipfile

import mask_files
import numpy as np
import openpyxl
import refuge_trees
import source_trees
from corpus.case import Case
from PIL import Image


def write_source(folder):
    """Writes photographs and masks that all manifests share."""
    folder.mkdir()
    for seed in range(4):
        mask_files.saved(folder / f"eye{seed}.png", mask_files.fundus(seed))
    disc, cup = (255 * m.astype(np.uint8) for m in (mask_files.DISC, mask_files.CUP))
    for name, mask in {
        "disc.png": disc,
        "cup.png": cup,
        "disc.jpg": disc,
        "labels.png": disc // 255,
        "both.bmp": mask_files.levels(255, 128, 0),
        "turned.png": disc.T.copy(),
        "beside.png": np.roll(cup, 30, axis=1),
        "three.png": disc // 255 + cup // 255,
        "wide.png": disc[:, :-1].copy(),
    }.items():
        mask_files.saved(folder / name, mask)
    Image.fromarray(mask_files.DISC).save(folder / "bits.png")
    (folder / "page.jpg").write_text("<!DOCTYPE html>")
    (folder / "folder.png").mkdir()
    Image.new("RGB", (200, 31)).save(folder / "small.png")
    Image.open(folder / "eye0.png").save(folder / "copy.bmp")
    (folder / "link.png").symlink_to("eye0.png")


def build(place, *flags):
    new = place.own / "new"
    return [
        "prepare_data",
        *("--dataset=fundus_folder", f"--data_dir={new}", "--image_size=32"),
        *flags,
    ]


def manifest(lines, *flags, encoding="utf-8"):
    """A function that writes a table, of lines, and returns the command."""

    def make(place):
        path = place.own / "manifest.csv"
        data = lines if isinstance(lines, bytes) else "\n".join(lines).encode(encoding)
        path.write_bytes(data)
        named = f"--source={place.source}", f"--manifest={path}"
        return build(place, *named, "--name=x", *flags)

    return make


def row(flags=(), **cells):
    """A table of one photograph with these cells."""
    cells = {"image_id": "a", "image": "eye0.png", "split": "train", **cells}
    cells = {name: cell for name, cell in cells.items() if cell is not None}
    return manifest([",".join(cells), ",".join(cells.values())], *flags)


HEAD = "image_id,image,split"
ROW = "a,eye0.png,train"
TWO = ["image_id,image,glaucoma,split", "a,eye0.png,1,train", "b,eye1.png,0,test"]
USED = r"^used: .*with glaucoma 1 .*train 1, test 1 images"


def separated(separator):
    return [line.replace(",", separator) for line in TWO]


MANIFESTS = {
    "commas": ("commas between columns", 0, USED, manifest(TWO)),
    "semicolons": ("semicolons", 0, USED, manifest(separated(";"))),
    "tabs": ("tabs", 0, USED, manifest(separated("\t"))),
    "byte order mark": (
        "a byte order mark",
        0,
        USED,
        manifest(TWO, encoding="utf-8-sig"),
    ),
    "carriage returns": (
        "lines that end as in Windows",
        0,
        USED,
        manifest("\r\n".join(TWO).encode()),
    ),
    "quotes": (
        "all cells in quotation marks",
        0,
        USED,
        manifest(['"' + line.replace(",", '","') + '"' for line in TWO]),
    ),
    "blanks": ("blanks around cells", 0, USED, manifest(separated(" , "))),
    "blank lines": ("blank lines", 0, USED, manifest([*TWO, "", ",,,", ""])),
    "upper case": (
        "a head in upper case",
        0,
        USED,
        manifest([TWO[0].upper(), *TWO[1:]]),
    ),
    "words": (
        "yes and no, Training and TESTING",
        0,
        USED,
        manifest([TWO[0], "a,eye0.png,Yes,Training", "b,eye1.png,no,TESTING"]),
    ),
    "floats": (
        "0.0 and 1.0, as pandas writes",
        0,
        USED,
        manifest([TWO[0], "a,eye0.png,1.0,train", "b,eye1.png,0.0,test"]),
    ),
    "unknown columns": (
        "columns of another program",
        0,
        USED,
        manifest([f"{TWO[0]},Age", *(f"{line},=1+1" for line in TWO[1:])]),
    ),
    "decimal comma": (
        "decimal commas, and semicolons",
        0,
        r"^used: .*fovea 1 ",
        manifest(
            ["image_id;image;split;fovea_x;fovea_y", "a;eye0.png;train;60,5;64,0"]
        ),
    ),
    "id in other scripts": (
        "an id in other scripts",
        0,
        "^used: .*train 1",
        row(image_id="眼"),
    ),
    "id as formula": (
        "an id that is a formula",
        0,
        "^used: .*train 1",
        row(image_id="=1+1"),
    ),
    "empty": ("an empty table", 1, "is empty; it needs the columns", manifest(b"")),
    "zero bytes": ("100 bytes of zero", 1, "manifest.csv", manifest(bytes(100))),
    "head alone": ("a head alone", 1, "has a header but no rows", manifest([HEAD])),
    "commas alone": (
        "no cell has text",
        1,
        "is empty; it needs|no rows",
        manifest([",,", ",,"]),
    ),
    "workbook": (
        "a workbook named .csv",
        1,
        "is not UTF-8 text",
        lambda place: manifest(book_bytes())(place),
    ),
    "latin-1": (
        "Latin-1",
        1,
        "is not UTF-8 text; save it as",
        manifest([HEAD, "ä,eye0.png,train"], encoding="latin-1"),
    ),
    "utf-16": ("UTF-16", 1, "is not UTF-8 text", manifest(TWO, encoding="utf-16")),
    "open quote": (
        "a quotation mark that nothing closes",
        1,
        "not well-formed CSV",
        manifest([HEAD, 'a,"eye0.png,train']),
    ),
    "huge cell": (
        "a cell of 200,000 letters",
        1,
        "not well-formed CSV",
        manifest([HEAD, "a" * 200_000 + ",eye0.png,train"]),
    ),
    "no id": ("no column image_id", 1, "no column image_id", row(image_id=None)),
    "no image": ("no column image", 1, "no column image", row(image=None)),
    "misspelt": ("cup_maks", 1, "row 1: unknown column 'cup_maks'", row(cup_maks="c")),
    "twice": (
        "a column twice",
        1,
        "the column image is given twice",
        manifest([f"{HEAD},image", f"{ROW},eye0.png"]),
    ),
    "more cells": (
        "more cells than columns",
        1,
        "row 2: more cells",
        manifest([HEAD, f"{ROW},1"]),
    ),
    "no cell": (
        "no cell for the photograph",
        1,
        "row 2: the cell image is empty",
        row(image=""),
    ),
    "no name": (
        "no cell for the id",
        1,
        "row 2: the cell image_id is empty",
        row(image_id=""),
    ),
    "same id": (
        "one id for two photographs",
        1,
        "row 3: image_id a is also in row 2",
        manifest([HEAD, ROW, "a,eye1.png,train"]),
    ),
    "slash": ("an id with a slash", 1, "cannot be a file name", row(image_id="x/y")),
    "parent": ("an id that is ..", 1, "cannot be a file name", row(image_id="..")),
    "long id": (
        "an id of 201 letters",
        1,
        "at most 200 bytes",
        row(image_id="x" * 201),
    ),
    "label 2": ("glaucoma = 2", 1, "glaucoma '2' is none of", row(glaucoma="2")),
    "label -1": ("glaucoma = -1", 1, "glaucoma '-1' is none of", row(glaucoma="-1")),
    "label nan": (
        "glaucoma = nan",
        1,
        "glaucoma 'nan' is none of",
        row(glaucoma="nan"),
    ),
    "split dev": ("split = dev", 1, "split 'dev' is none of", row(split="dev")),
    "eye": ("eye = third", 1, "eye 'third' is none of", row(eye="third")),
    "absent": (
        "a photograph that is not there",
        1,
        "row 2: .*no.png does not exist",
        row(image="no.png"),
    ),
    "folder": (
        "a folder as photograph",
        1,
        "row 2: .*folder.png is not a file",
        row(image="folder.png"),
    ),
    "web page": (
        "a web page as photograph",
        1,
        "row 2: .*not an image",
        row(image="page.jpg"),
    ),
    "small": (
        "200 x 31 pixels",
        1,
        "200 x 31 pixels; at least 32",
        row(image="small.png"),
    ),
    "nul": (
        "a name with a zero byte",
        1,
        "row 2: .*does not exist|well-formed",
        row(image="a\0b"),
    ),
    "long name": (
        "a name of 5,000 letters",
        1,
        "row 2: .*does not exist",
        row(image="x" * 5000),
    ),
    "same file": (
        "a photograph twice",
        1,
        "row 3: image .* is also in row 2",
        manifest([HEAD, ROW, "b,eye0.png,train"]),
    ),
    "same file by a link": (
        "a photograph and a link to it",
        1,
        "row 3: image .* is also in row 2",
        manifest([HEAD, ROW, "b,link.png,test"]),
    ),
    "same file by ..": (
        "a photograph by a path with ..",
        1,
        "row 3: image .* is also in row 2",
        manifest([HEAD, ROW, "b,folder.png/../eye0.png,test"]),
    ),
    "same pixels": (
        "the same pixels in another split",
        1,
        r"row 3: .*copy.bmp has the pixels of .*--accept=two_splits\.",
        manifest([HEAD, ROW, "b,copy.bmp,test"]),
    ),
    "two diagnoses": (
        "the same pixels with another diagnosis",
        1,
        r"another diagnosis .*--accept=two_diagnoses\.",
        manifest([TWO[0], TWO[1], "b,copy.bmp,0,train"]),
    ),
    "same patient": (
        "a patient in two splits",
        1,
        "patient 7 has photographs in train .* and test",
        manifest([f"{HEAD},patient", f"{ROW},7", "b,eye1.png,test,7"]),
    ),
    "half a fovea": (
        "fovea_x without fovea_y",
        1,
        "only one of fovea_x",
        row(fovea_x="1", fovea_y=""),
    ),
    "fovea nan": (
        "fovea_x = nan",
        1,
        "'nan' is not a number",
        row(fovea_x="nan", fovea_y="1"),
    ),
    "fovea inf": (
        "fovea_y = inf",
        1,
        "'inf' is not a number",
        row(fovea_x="1", fovea_y="inf"),
    ),
    "fovea outside": (
        "a fovea beyond the edge",
        1,
        "lies outside",
        row(fovea_x="160", fovea_y="9"),
    ),
    "fovea negative": (
        "a fovea of -1",
        1,
        "lies outside",
        row(fovea_x="9", fovea_y="-1"),
    ),
    "fovea at 0": (
        "a fovea at (0, 0)",
        1,
        "--accept=fovea_at_origin",
        row(fovea_x="0", fovea_y="0"),
    ),
    "fovea in the dark": (
        "a fovea outside the field of view",
        1,
        "--accept=fovea_outside_field",
        row(fovea_x="3", fovea_y="60"),
    ),
    "accepted": (
        "a fovea outside, accepted",
        0,
        r"^used: .*fovea 1 ",
        row(["--accept=fovea_outside_field"], fovea_x="3", fovea_y="60"),
    ),
    "unknown kind": (
        "--accept=all",
        1,
        "--accept=all is no kind",
        row(["--accept=all"]),
    ),
}


def mask(name):
    """The mask of `mask_files.WRONG`."""
    column, pixels, _ = mask_files.WRONG[name]

    def make(place):
        path = mask_files.saved(place.own / "mask.png", pixels)
        return row(**{column: str(path)})(place)

    return make


BOTH = "^used: .*optic disc 1 .*optic cup 1 |^used: .*disc 1 .*cup 1 "
MASKS = {
    "two files": (
        "disc and cup",
        0,
        BOTH,
        row(disc_mask="disc.png", cup_mask="cup.png"),
    ),
    "one file": ("REFUGE's values", 0, BOTH, row(mask="both.bmp")),
    "labels": ("0 and 1", 0, "^used: .*disc 1 ", row(disc_mask="labels.png")),
    "one bit": ("a mask of 1 bit", 0, "^used: .*disc 1 ", row(disc_mask="bits.png")),
    "jpeg": ("a mask as JPEG", 0, "^used: .*disc 1 ", row(disc_mask="disc.jpg")),
    "absent mask": (
        "a mask that is not there",
        1,
        "no.png does not exist",
        row(disc_mask="no.png"),
    ),
    "web page as mask": (
        "a web page as mask",
        1,
        "not an image",
        row(cup_mask="page.jpg"),
    ),
    "table as mask": ("a folder as mask", 1, "is not a file", row(mask="folder.png")),
    "turned": (
        "a mask on its side",
        1,
        "has 120 x 160 pixels, its photograph 160 x 120",
        row(disc_mask="turned.png"),
    ),
    "one column less": (
        "a mask of one column less",
        1,
        "has 159 x 120 pixels, its photograph",
        row(disc_mask="wide.png"),
    ),
    "three labels": (
        "values of 0, 1 and 2",
        1,
        "its largest value is 2",
        row(disc_mask="three.png"),
    ),
    "swapped": (
        "disc and cup swapped",
        1,
        "--accept=cup_outside_disc",
        row(disc_mask="cup.png", cup_mask="disc.png"),
    ),
    "beside": (
        "a cup beside the disc",
        1,
        "--accept=cup_outside_disc",
        row(disc_mask="disc.png", cup_mask="beside.png"),
    ),
    "one too many": (
        "mask and disc_mask",
        1,
        "both mask and disc_mask",
        row(mask="both.bmp", disc_mask="disc.png"),
    ),
    **{
        f"wrong {name}": (
            f"{name}, in {column}",
            1,
            rf"row 2: .*--accept={kind}\.",
            mask(name),
        )
        for name, (column, _, kind) in mask_files.WRONG.items()
    },
}


def book_bytes():
    book = openpyxl.Workbook()
    for line in TWO:
        book.active.append(line.split(","))
    return refuge_trees.book_bytes(book)


def sheet_bomb():
    """A workbook of a few kilobytes whose sheet has 40 megabytes."""
    changed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(book_bytes())) as source,
        zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            text = source.read(name)
            if name == "xl/worksheets/sheet1.xml":
                text = b"<worksheet><!--" + b" " * (40 << 20) + b"--></worksheet>"
            target.writestr(name, text)
    return changed.getvalue()


def encrypted():
    """An archive whose member claims to be encrypted."""
    data = bytearray(refuge_trees.zip_bytes({"T0001.jpg": b"x"}))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def refuge(tree, *flags):
    def make(place):
        source = place.own / "source"
        source.mkdir()
        refuge_trees.write(tree() if callable(tree) else tree, source)
        return [
            *("prepare_data", "--dataset=refuge", f"--source={source}"),
            *(f"--data_dir={place.own / 'new'}", "--image_size=32", *flags),
        ]

    return make


def drishti(change):
    """Drishti-GS1's tree, changed."""

    def make(place):
        source = place.own / "source"
        source_trees.drishti_gs1(source)
        change(source)
        return build(place, f"--source=drishti_gs1:{source}")

    return make


def table(data):
    def change(source):
        (source / "Drishti-GS1_diagnosis.xlsx").write_bytes(data())

    return change


def without(name, tree=refuge_trees.official):
    return {path: data for path, data in tree().items() if name not in path}


def replaced(name, data, tree=refuge_trees.official):
    return {p: data if name in p else old for p, old in tree().items()}


def central_directory_of(count):
    """An end of an archive that claims many members."""
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, 46 * count, 0, 0)


SPREADSHEETS = {
    "no workbook": (
        "text named .xlsx",
        1,
        "is a damaged table",
        drishti(table(lambda: b"text")),
    ),
    "workbook cut": (
        "half of a workbook",
        1,
        "is a damaged table",
        drishti(table(lambda: book_bytes()[: len(book_bytes()) // 2])),
    ),
    "workbook bomb": (
        "a workbook of 40 MB in few kB",
        1,
        "is a damaged table .*40 MB",
        drishti(table(sheet_bomb)),
    ),
    "workbook without columns": (
        "a workbook of something else",
        1,
        "Drishti-GS1_diagnosis.xlsx",
        drishti(table(book_bytes)),
    ),
    "refuge's table cut": (
        "half of REFUGE's table",
        1,
        "Fovea_locations.xlsx is a damaged table",
        refuge(lambda: replaced("Fovea_locations.xlsx", b"PK\3\4")),
    ),
    "index.json cut": (
        "half of an index.json",
        1,
        "index.json is a damaged table",
        refuge(lambda: {**refuge_trees.official(), "test/index.json": b'{"0": {'}),
    ),
    "no such source": (
        "a folder that is not there",
        1,
        "is not a directory",
        lambda place: build(place, f"--source={place.own / 'no'}"),
    ),
    "no manifest": (
        "a folder without a manifest",
        1,
        "manifest.csv does not exist; name the CSV file",
        lambda place: build(place, f"--source={place.own}"),
    ),
    "unknown set": (
        "a public set that is not known",
        1,
        "has no manifest.csv, and 'kaggle' is none of the public sets",
        lambda place: build(place, f"--source=kaggle:{place.own}"),
    ),
    "one source twice": (
        "two sources of one name",
        1,
        "have one name",
        lambda place: build(place, f"--source=a:{place.own},a:{place.source}"),
    ),
    "drishti without its photographs": (
        "a public set without photographs",
        1,
        "drishti",
        drishti(lambda source: shutil.rmtree(source / "Drishti-GS1_files")),
    ),
}

ARCHIVES = {
    "empty folder": ("an empty folder", 1, "holds nothing of REFUGE", refuge({})),
    "empty archive": (
        "an archive of 0 bytes",
        1,
        "x.zip is a truncated or damaged archive",
        refuge({"x.zip": b""}),
    ),
    "archive without members": (
        "an archive without members",
        1,
        "holds nothing of REFUGE",
        refuge(lambda: {"x.zip": refuge_trees.zip_bytes({})}),
    ),
    "archive cut": (
        "half of an archive",
        1,
        "is a truncated or damaged archive",
        refuge(
            lambda: {
                name: data[: len(data) // 2]
                for name, data in refuge_trees.archived().items()
            }
        ),
    ),
    "text as archive": (
        "text named .zip",
        1,
        "is a truncated or damaged archive",
        refuge({"x.zip": b"text"}),
    ),
    "many members": (
        "an archive that claims 65,535 members",
        1,
        "is a truncated or damaged archive",
        refuge({"x.zip": central_directory_of(65535)}),
    ),
    "rar": (
        "an archive that is not read",
        1,
        "unpack it",
        refuge({"Test400.rar": b"Rar!"}),
    ),
    "encrypted": (
        "an encrypted archive",
        1,
        "is encrypted .*unpack it",
        refuge(lambda: {"x.zip": encrypted()}),
    ),
    "upwards": (
        "an archive whose member leads out of its folder",
        1,
        "holds nothing of REFUGE|lacks",
        refuge(lambda: {"x.zip": refuge_trees.zip_bytes({"../../T0001.jpg": b"x"})}),
    ),
    "nested": (
        "an archive in an archive",
        1,
        "holds nothing of REFUGE",
        refuge(
            lambda: {
                "x.zip": refuge_trees.zip_bytes({"y.zip": refuge_trees.zip_bytes({})})
            }
        ),
    ),
    "no photographs": (
        "REFUGE without photographs",
        1,
        "lacks 400 of 400 photographs",
        refuge(lambda: without(".jpg")),
    ),
    "no masks": (
        "REFUGE without masks",
        1,
        "--allow_missing",
        refuge(lambda: without(".bmp")),
    ),
}

CASES = [
    Case(name, given, expected, code, make, kind)
    for kind, group in {
        "manifest": MANIFESTS,
        "mask": MASKS,
        "spreadsheet": SPREADSHEETS,
        "archive": ARCHIVES,
    }.items()
    for name, (given, code, expected, make) in group.items()
]
