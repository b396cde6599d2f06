"""Small trees in the layouts of public data sets, and what they say.

Each function writes a tree below a folder and returns the expected `Truth`s by name.
Photographs are random, 48 x 64 pixels, and all different.
"""

import dataclasses
import shutil

import numpy as np
import openpyxl
from PIL import Image

SIZE = (48, 64)


@dataclasses.dataclass
class Truth:
    """None stands for "not annotated", and for a split that is drawn."""

    disc: np.ndarray | None = None
    cup: np.ndarray | None = None
    fovea: tuple[float, float] | None = None
    glaucoma: float | None = None
    split: str | None = None
    patient: str = ""
    eye: str = ""


def write_photograph(path, seed):
    """Smooth patches, so that JPEG changes little; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC).save(path)


def write_values(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def write_book(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def structures(seed):
    """A random disc with a cup in it, bool [48, 64] each."""
    x, y = np.random.default_rng(seed).integers((14, 14), (40, 30))
    disc, cup = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    disc[y - 10 : y + 10, x - 9 : x + 9] = True
    cup[y - 4 : y + 5, x - 4 : x + 3] = True
    return disc, cup


def drishti_gs1(folder):
    truths = {}
    files = folder / "Drishti-GS1_files"
    table = [
        [None, "Drishti-GS1: diagnosis"],
        [],
        [
            "Sl. No.",
            "Drishti-GS File",
            "Patient ID",
            "Marking of experts",
            None,
            "Total",
        ],
        [None, None, None, "Expert 1", "Expert 2", None],
    ]
    for i, name in enumerate(["002", "004", "008", "010", "012", "001", "003"]):
        part = "Test" if name in ("001", "003") else "Training-20211018T-001/Training"
        stem = f"drishtiGS_{name}"
        write_photograph(files / part / "Images/GLAUCOMA" / f"{stem}.png", i)
        disc, cup = structures(i)
        # Of four experts, two see the uppermost rows and one the row above.
        for structure, kind in ((disc, "ODseg"), (cup, "cupseg")):
            soft = np.where(structure, 255, 0)
            top = np.flatnonzero(structure.any(1))[0]
            soft[top] //= 2
            soft[top - 1] = soft[top + 1] // 4
            target = (
                files / part / "GT" / stem / "SoftMap" / f"{stem}_{kind}Softmap.png"
            )
            write_values(target, soft)
        glaucoma = i % 2
        word = "Glaucomatous" if glaucoma else "Normal"
        patient = f"P{i // 2}" if part != "Test" else f"T{i}"
        table.append([i, f"{stem}'", patient, "", "", word])
        truths[stem] = Truth(
            disc,
            cup,
            glaucoma=glaucoma,
            split="test" if part == "Test" else None,
            patient=patient,
        )
    write_book(folder / "Drishti-GS1_diagnosis.xlsx", table)
    return truths


def idrid(folder):
    truths = {}
    localisation, segmentation = folder / "C. Localization", folder / "A. Segmentation"
    sets = {"Training": "a. Training Set", "Testing": "b. Testing Set"}
    for part, count in (("Training", 5), ("Testing", 2)):
        lines = ["Image No,X- Coordinate,Y - Coordinate,,,"]
        for number in range(1, count + 1):
            name, fovea = f"IDRiD_{number:03}", (10.0 + number, 20.5)
            write_photograph(
                localisation / "1. Original Images" / sets[part] / f"{name}.jpg",
                10 * count + number,
            )
            lines.append(f"{name},{fovea[0]},{fovea[1]},,,")
            split = "train" if part == "Training" else "test"
            truths[f"idrid_{split}_{number:03}"] = Truth(
                fovea=fovea, split="test" if split == "test" else None
            )
        lines += [",,,,,"] * 3
        table = (
            f"2. Groundtruths/2. Fovea Center Location/IDRiD_Fovea_Center_{part} Set"
        )
        path = localisation / f"{table}_Markups.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    # The centres of discs are no label here.
    other = localisation / "2. Groundtruths/1. Optic Disc Center Location"
    other.mkdir()
    (other / "a. IDRiD_OD_Center_Training Set_Markups.csv").write_text(
        "Image No,X- Coordinate,Y - Coordinate\nIDRiD_001,1,2\n"
    )
    for number, part in ((1, "Training"), (2, "Training"), (55, "Testing")):
        name = f"IDRiD_{number:02}"
        target = segmentation / "1. Original Images" / sets[part] / f"{name}.jpg"
        disc, _ = structures(number)
        mask = Image.fromarray(disc.astype(np.uint8)).convert("P")
        mask.putpalette([0, 0, 0, 255, 0, 0])
        place = "2. All Segmentation Groundtruths" + f"/{sets[part]}/5. Optic Disc"
        path = segmentation / place / f"{name}_OD.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
        if number == 2:
            # It is also in the localisation part, under another number.
            source = localisation / "1. Original Images/b. Testing Set/IDRiD_002.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            truths["idrid_test_002"].disc = disc
        else:
            write_photograph(target, 100 + number)
            truths[f"idrid_segmentation_{number:02}"] = Truth(
                disc, split="test" if part == "Testing" else None
            )
    return truths


def rim_one_dl(folder):
    truths = {}
    images = folder / "RIM-ONE_DL_images"
    for i, (part, diagnosis, stem) in enumerate(
        [
            ("training_set", "glaucoma", "r2_Im001"),
            ("training_set", "normal", "r2_Im007"),
            ("training_set", "normal", "r3_Im003"),
            ("test_set", "glaucoma", "r1_Im002"),
            ("test_set", "normal", "r1_Im001"),
        ]
    ):
        by_hospital = images / "partitioned_by_hospital" / part / diagnosis
        write_photograph(by_hospital / f"{stem}.png", i)
        # The same once more.
        randomly = images / "partitioned_randomly/test_set" / diagnosis
        write_photograph(randomly / f"{stem}.png", i)
        disc, cup = structures(i)
        masks = folder / "RIM-ONE_DL_reference_segmentations" / diagnosis
        write_values(masks / f"{stem}-1-Disc-T.png", 255 * disc)
        write_values(masks / f"{stem}-1-Cup-T.png", 255 * cup)
        truths[stem] = Truth(
            disc,
            cup,
            glaucoma=float(diagnosis == "glaucoma"),
            split="test" if part == "test_set" else None,
        )
    return truths


def papila(folder):
    truths = {}
    root = folder / "PapilaDB-PAPILA-17f8fa77"
    tables = {
        eye: [
            [None, "Age", "Gender", "Diagnosis", "Refractive Defect", None],
            [None, "Age", "Gender", "Diagnosis", "dioptre_1", "dioptre_2"],
            ["ID", None, None, None, None, None],
        ]
        for eye in ("OD", "OS")
    }
    for i in range(10):
        patient, eye = f"{2 * (i // 2) + 2:03}", ("OD", "OS")[i % 2]
        stem = f"RET{patient}{eye}"
        write_photograph(root / "FundusImages" / f"{stem}.jpg", i)
        drawn = root / "ExpertsSegmentations/ImagesWithContours"
        write_photograph(drawn / f"Opht_cont_{stem}.jpg", i)
        disc, cup = structures(i)
        # The first expert sees the upper half alone, the second the lower one.
        for structure, kind in ((disc, "disc"), (cup, "cup")):
            rows = np.flatnonzero(structure.any(1))
            columns = np.flatnonzero(structure.any(0))
            left, right = columns[0] - 0.5, columns[-1] + 0.5
            middle = rows[len(rows) // 2]
            for expert, (top, bottom) in enumerate(
                ((rows[0] - 0.5, middle - 0.5), (middle - 0.5, rows[-1] + 0.5)), 1
            ):
                corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
                name = f"{stem}_{kind}_exp{expert}.txt"
                path = root / "ExpertsSegmentations/Contours" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(f"   {x:e}   {y:e}\n" for x, y in corners))
        diagnosis = i % 3
        tables[eye].append([f"#{patient}", 50 + i, 0, diagnosis, 1.5, None])
        truths[stem] = Truth(
            disc,
            cup,
            glaucoma=diagnosis if diagnosis < 2 else None,
            patient=patient,
            eye=eye,
        )
    for eye, table in tables.items():
        write_book(root / "ClinicalData" / f"patient_data_{eye.lower()}.xlsx", table)
    return truths


def origa(folder):
    truths = {}
    lines = ["Eye,Filename,ExpCDR,Set,Glaucoma"]
    for i in range(1, 7):
        stem = f"{i:03}"
        for place in ("Images", "Images_Cropped", "Images_Square"):
            write_photograph(folder / "ORIGA" / place / f"{stem}.jpg", i)
        disc, cup = structures(i)
        for place in ("Masks", "Masks_Cropped"):
            path = folder / "ORIGA" / place / f"{stem}.png"
            write_values(path, disc.astype(int) + cup)
        eye, group = ("OD", "OS")[i % 2], "AAAABB"[i - 1]
        lines.append(f"{eye},{stem}.jpg,0.7,{group},{i % 2}")
        truths[f"origa_{stem}"] = Truth(
            disc,
            cup,
            glaucoma=i % 2,
            split="test" if group == "B" else None,
            eye=eye,
        )
    (folder / "ORIGA/OrigaList.csv").write_text("\n".join(lines))
    return truths


def g1020(folder):
    truths = {}
    lines = ["imageID,binaryLabels"]
    for i in range(6):
        stem = f"image_{i}"
        write_photograph(folder / "G1020/Images" / f"{stem}.jpg", i)
        disc, cup = structures(i)
        if i == 3:  # No cup is visible.
            cup = np.zeros_like(cup)
        path = folder / "G1020/Masks" / f"{stem}.png"
        write_values(path, disc.astype(int) + cup)
        lines.append(f"{stem}.jpg,{i % 2}")
        truths[f"g1020_{stem}"] = Truth(disc, cup, glaucoma=i % 2)
    (folder / "G1020/G1020.csv").write_text("\n".join(lines) + "\n")
    return truths


def smdg(folder):
    truths = {}
    heads = "names,types,fundus,fundus_od_seg,fundus_oc_seg,eye,patient_id"
    lines = [f",{heads}"]
    names = ["BEH-1", "DRISHTI-GS1-TRAIN-1", "PAPILA-1", "PAPILA-2", "PAPILA-3"]
    for i, name in enumerate(names):
        path = folder / "full-fundus/full-fundus" / f"{name}.png"
        write_photograph(path, i)
        disc, cup = structures(i)
        is_papila = name.startswith("PAPILA")
        cells = [name, str(i % 3 - 1), f"/full-fundus/{name}.png"]
        cells += [f"/optic-disc/{name}.png"] if i else [""]
        cells += ["", "Not Visible"][i : i + 1] or [f"/optic-cup/{name}.png"]
        cells += [("OD", "OS")[i % 2], f"{i // 2}.0"] if is_papila else ["", ""]
        lines.append(",".join([str(i), *cells]))
        if i:
            write_values(folder / f"optic-disc/optic-disc/{name}.png", 255 * disc)
        if i > 1:
            write_values(folder / f"optic-cup/optic-cup/{name}.png", 255 * cup)
        truths[name] = Truth(
            disc if i else None,
            cup if i > 1 else None,
            glaucoma=i % 3 - 1 if i % 3 else None,
            patient=f"PAPILA/{i // 2}.0" if is_papila else "",
            eye=("OD", "OS")[i % 2] if is_papila else "",
        )
    (folder / "metadata - standardized.csv").write_text("\n".join(lines))
    return truths


TREES = {
    tree.__name__: tree
    for tree in (drishti_gs1, idrid, rim_one_dl, papila, origa, g1020, smdg)
}
