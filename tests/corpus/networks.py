"""Weight files and checkpoints."""

import functools
import importlib.util
import json
import pickle
import shutil

import h5py
import numpy as np
import weight_files
from corpus.case import Case


def import_weights(place, path, architecture="vgg13"):
    return [
        "import_weights",
        f"--source={path}",
        f"--architecture={architecture}",
        f"--output={place.own / 'new'}",
    ]


@functools.cache
def tensors(architecture="vgg13"):
    return weight_files.torchvision(architecture)


def file(name, data, architecture="vgg13"):
    """A function that writes bytes and returns the command."""

    def make(place):
        (place.own / name).write_bytes(data)
        return import_weights(place, place.own / name, architecture)

    return make


def written(write, name="a.safetensors", architecture="vgg13"):
    def make(place):
        write(place.own / name)
        return import_weights(place, place.own / name, architecture)

    return make


def safetensors(change=None, architecture="vgg13", theirs="vgg13"):
    """A function that writes a state dict, changed."""

    def write(path):
        found = dict(tensors(theirs))
        if change:
            change(found)
        weight_files.write_safetensors(path, found)

    return written(write, architecture=architecture)


def torch_file(content, **options):
    def write(path):
        import torch

        torch.save(content(torch), path, **options)

    return written(write, "a.pth")


def header(fields, size=None):
    """A file of safetensors with this header, and a few bytes."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + bytes(8)


def tensor(**fields):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}
    return file("a.safetensors", header({"features.0.weight": entry}))


def state_dict(torch):
    return {name: torch.tensor(array) for name, array in tensors().items()}


class Malicious:
    def __reduce__(self):
        return print, ("run by a pickle",)


def empty_h5(path):
    h5py.File(path, "w").close()


def absent_h5(path):
    with h5py.File(path, "w") as opened:
        shape, chunks = (1 << 20, 1 << 20), (64, 64)
        opened.create_dataset("block1_conv1/kernel", shape, "float32", chunks=chunks)


def cut_h5(path):
    weight_files.write_keras(path, {"block1_conv1": (np.zeros((3, 3, 3, 64)),)})
    path.write_bytes(path.read_bytes()[:-500])


DAMAGED = "is damaged, incomplete, or not what its name says"
IMPORTED = "^used: .*--config.model.encoder=vgg13 --config.model.norm=none"
WEIGHTS = {
    "torchvision": ("torchvision's vgg13", 0, IMPORTED, safetensors()),
    "wrapped": (
        "a state_dict of DataParallel in a training program's checkpoint",
        0,
        IMPORTED,
        torch_file(
            lambda torch: {
                "epoch": 3,
                "state_dict": {f"module.{n}": t for n, t in state_dict(torch).items()},
            }
        ),
    ),
    "half precision": (
        "numbers of 16 bits",
        0,
        IMPORTED,
        safetensors(lambda t: t.update({n: a.astype("f2") for n, a in t.items()})),
    ),
    "classifier": (
        "a classifier besides",
        0,
        "ignored, not part of the encoder: classifier.0.weight",
        safetensors(
            lambda t: t.update({"classifier.0.weight": np.zeros((4, 8), "f4")})
        ),
    ),
    "absent": (
        "no file",
        1,
        "There is no file",
        lambda place: import_weights(place, place.own / "no.pth"),
    ),
    "a folder": (
        "a folder",
        1,
        "There is no file|is a directory|unknown extension",
        lambda place: import_weights(place, place.own),
    ),
    "npz": ("an .npz", 1, "unknown extension", file("a.npz", b"PK\3\4")),
    "pickle": ("a .pkl", 1, "unknown extension", file("a.pkl", pickle.dumps({}))),
    "no bytes": ("0 bytes", 1, DAMAGED, file("a.safetensors", b"")),
    "no bytes of h5": ("0 bytes, .h5", 1, DAMAGED, file("a.h5", b"")),
    "no bytes of pth": ("0 bytes, .pth", 1, DAMAGED, file("a.pth", b"")),
    "page": ("a web page named .pth", 1, DAMAGED, file("a.pth", b"<html>404</html>")),
    "page as h5": ("a web page named .h5", 1, DAMAGED, file("a.h5", b"<html>")),
    "pointer": (
        "a pointer of Git LFS",
        1,
        DAMAGED,
        file("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
    ),
    "large header": (
        "a header of 2^60 bytes",
        1,
        DAMAGED,
        file("a.safetensors", header({}, 1 << 60)),
    ),
    "header no JSON": (
        "a header that is no JSON",
        1,
        DAMAGED,
        file("a.safetensors", header(b"{{{")),
    ),
    "header a list": (
        "a header that is a list",
        1,
        DAMAGED,
        file("a.safetensors", header([1])),
    ),
    "offsets": ("offsets beyond the end", 1, DAMAGED, tensor(data_offsets=[0, 999])),
    "backwards": ("offsets backwards", 1, DAMAGED, tensor(data_offsets=[8, 0])),
    "shape": ("a shape that does not fit", 1, DAMAGED, tensor(shape=[3])),
    "large shape": ("a shape of 2^62", 1, DAMAGED, tensor(shape=[1 << 31, 1 << 31])),
    "dtype": ("an unknown dtype", 1, DAMAGED, tensor(dtype="F7")),
    "no tensors": (
        "no tensor at all",
        1,
        "not of the architecture vgg13|no tensors",
        file("a.safetensors", header({})[:-8]),
    ),
    "cut h5": ("an HDF5 without its end", 1, DAMAGED, written(cut_h5, "a.h5")),
    "empty h5": (
        "an HDF5 without weights",
        1,
        "a.h5",
        written(empty_h5, "a.h5", "vgg16"),
    ),
    "absent h5": (
        "an HDF5 of 4 TB in a few kB",
        1,
        r"would take [\d,]+ bytes of memory",
        written(absent_h5, "a.h5", "vgg16"),
    ),
    "expanded": (
        "a tensor of 4 TB in a few kB",
        1,
        r"would take [\d,]+ bytes of memory",
        torch_file(
            lambda torch: {"features.0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}
        ),
    ),
    "code": (
        "a pickle that runs code",
        1,
        "could run code on loading and is refused",
        torch_file(lambda torch: {"w": torch.zeros(2), "x": Malicious()}),
    ),
    "old code": (
        "a pickle that runs code, in the old format",
        1,
        "could run code on loading and is refused",
        torch_file(
            lambda torch: {"w": torch.zeros(2), "x": Malicious()},
            _use_new_zipfile_serialization=False,
        ),
    ),
    "a list": (
        "a list of tensors",
        1,
        "no tensors by name",
        torch_file(lambda torch: [torch.zeros(2)]),
    ),
    "hash": (
        "another hash than in its name",
        1,
        "is not torchvision's file of that name",
        file("vgg13_bn-6c64b313.pth", b"x", "vgg13_bn"),
    ),
    "another": (
        "vgg16 as vgg13",
        1,
        "not of the architecture vgg13",
        safetensors(theirs="vgg16"),
    ),
    "with norms": (
        "vgg13 as vgg13_bn",
        1,
        "not of the architecture vgg13_bn: .*looks like .*vgg13;",
        safetensors(architecture="vgg13_bn"),
    ),
    "as resnet": (
        "vgg13 as resnet34",
        1,
        "not of the architecture resnet34",
        safetensors(architecture="resnet34"),
    ),
    "misshapen": (
        "a layer of another width",
        1,
        r"features.5.bias of shape \(12,\)",
        safetensors(lambda t: t.update({"features.5.bias": np.zeros(12, "f4")})),
    ),
    "missing": (
        "a layer that is missing",
        1,
        "has no features.7.weight",
        safetensors(lambda t: t.pop("features.7.weight")),
    ),
    "nan": (
        "numbers that are not finite",
        1,
        "features.7.bias that are not finite",
        safetensors(lambda t: t.update({"features.7.bias": np.full(256, np.nan)})),
    ),
    "as a network": (
        "vgg13 as a network of the authors",
        1,
        "a.safetensors",
        safetensors(architecture="glaucoma_mtl"),
    ),
}


# PyTorch reads these; other tests do without it.
TORCH = {"wrapped", "no bytes of pth", "page", "expanded", "code", "old code", "a list"}
if not importlib.util.find_spec("torch"):
    WEIGHTS = {name: case for name, case in WEIGHTS.items() if name not in TORCH}


def evaluate(*flags, change=None):
    """A function that changes a copy of the run and evaluates it."""

    def make(place):
        workdir = place.own / "run"
        shutil.copytree(place.workdir, workdir)
        if change:
            change(workdir)
        return ["evaluate", f"--workdir={workdir}", *flags]

    return make


def config_json(text):
    return lambda workdir: (workdir / "config.json").write_text(text)


def cut_models(workdir):
    for step in (workdir / "checkpoints").iterdir():
        parts = [path for path in (step / "model").rglob("*") if path.is_file()]
        largest = max(parts, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def no_checkpoints(workdir):
    shutil.rmtree(workdir / "checkpoints")


def emptied_checkpoints(workdir):
    no_checkpoints(workdir)
    (workdir / "checkpoints").mkdir()


def renamed_checkpoints(workdir):
    for step in sorted((workdir / "checkpoints").iterdir()):
        step.rename(step.with_name(f"{step.name}.backup"))


def no_metadata(workdir):
    for step in (workdir / "checkpoints").iterdir():
        shutil.rmtree(step / "metadata")


CHECKPOINTS = {
    "no workdir": (
        "a workdir that is not there",
        1,
        "There is no workdir",
        lambda place: ["evaluate", f"--workdir={place.own / 'no'}"],
    ),
    "a file": (
        "a file as workdir",
        1,
        "There is no workdir",
        lambda place: ["evaluate", f"--workdir={place.source / 'eye0.png'}"],
    ),
    "empty workdir": (
        "an empty folder",
        1,
        "holds no checkpoint",
        lambda place: ["evaluate", f"--workdir={place.source}"],
    ),
    "no checkpoints": (
        "a workdir without checkpoints",
        1,
        "holds no checkpoint",
        evaluate(change=no_checkpoints),
    ),
    "emptied": (
        "an emptied folder of checkpoints",
        1,
        "holds no checkpoint",
        evaluate(change=emptied_checkpoints),
    ),
    "renamed": (
        "renamed checkpoints",
        1,
        "holds no checkpoint",
        evaluate(change=renamed_checkpoints),
    ),
    "step": ("--checkpoint=7", 1, "no checkpoint '7'", evaluate("--checkpoint=7")),
    "word": ("--checkpoint=last", 1, "'last'", evaluate("--checkpoint=last")),
    "negative": ("--checkpoint=-1", 1, "'-1'", evaluate("--checkpoint=-1")),
    "config a list": (
        "a config.json that is a list",
        1,
        "where a config is expected, a JSON object",
        evaluate(change=config_json("[]")),
    ),
    "config cut": (
        "half of a config.json",
        1,
        "config.json cannot be read .*move it away",
        evaluate(change=config_json('{"tasks": [')),
    ),
    "config empty": (
        "an empty config.json",
        1,
        "config.json cannot be read .*move it away",
        evaluate(change=config_json("")),
    ),
    "cut in half": (
        "half of the numbers of each checkpoint",
        1,
        "is damaged",
        evaluate(change=cut_models),
    ),
    "no metadata": (
        "checkpoints without metadata",
        1,
        "is damaged",
        evaluate(change=no_metadata),
    ),
}

CASES = [
    Case(name, given, expected, code, make, kind)
    for kind, group in {"weights": WEIGHTS, "checkpoint": CHECKPOINTS}.items()
    for name, (given, code, expected, make) in group.items()
]
