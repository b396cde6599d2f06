"""Reads named tensors from files of other programs, without running their code."""

import hashlib
import pathlib
import pickle
import re
import zipfile
from typing import Any

import numpy as np

from mtl_jax.errors import UserError, check_access

Tensors = dict[str, np.ndarray]

_SUFFIXES = (".pth", ".pt", ".safetensors", ".h5", ".hdf5")
# Weights hardly shrink, but layers may share a tensor: a file of weights holds at most
# this many times its bytes.
_MOST_EXPANSION = 16
# The names of torchvision's files end in the beginning of their SHA-256.
_TORCHVISION = re.compile(r"(?:vgg|resnet)\d+(?:_bn)?-([0-9a-f]{8})\.pth")
# Where training programs keep the state dict in a checkpoint.
_WRAPPERS = ("model_state_dict", "state_dict", "model")
# What PyTorch's wrappers of a network write before all of its names.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Packages whose objects in a pickle are replaced by `Inert`.
_STOOD_IN = ("sklearn.", "numpy.", "scipy.")
_NUMBER_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
# PyTorch's messages for a well-formed pickle that might run code.
_REFUSALS = ("Unsupported global", "Unsupported class", "Trying to", "Can only")


def read(path: pathlib.Path) -> Tensors:
    """Reads a file of weights.

    Args:
      path: `.pth` or `.pt` with a state dict by `torch.save`, at the top or as
        `_WRAPPERS` have it; `.safetensors`; or `.h5` by Keras. Keras' tensors get the
        names `layer/kernel` and `layer/bias`. Prefixes of all names are left out.

    Returns:
      float32 arrays by name; half precision is cast. Tensors of integers, such as
      counters of batches, are left out.

    Raises:
      UserError: if the file is missing, damaged or of another kind, holds something
        else than tensors, would fill the memory, is not what the hash in its name says,
        or needs a package that is not installed.
    """
    path = _existing(path)
    _check_hash(path)
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"{path} has an unknown extension; name a file that ends in one of "
            f"{', '.join(_SUFFIXES)}."
        )
    readers = {".safetensors": _read_safetensors, ".h5": _read_h5, ".hdf5": _read_h5}
    found = readers.get(path.suffix, _read_torch)(path)
    return _finite(path, _without_prefix(found))


def _without_prefix(tensors: Tensors) -> Tensors:
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            short = {n.removeprefix(prefix): x for n, x in tensors.items()}
            return _without_prefix(short)
    return tensors


def _existing(path: pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"There is no file {path}; name one with weights.")
    return path


def _check_hash(path: pathlib.Path) -> None:
    """Compares a file with the hash that torchvision wrote into its name."""
    if (named := _TORCHVISION.fullmatch(path.name)) is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(named[1]):
        raise UserError(
            f"{path} is not torchvision's file of that name: its SHA-256 begins with "
            f"{digest[:8]} and not with {named[1]}; download it again, or rename it if "
            "it is another."
        )


def _check_expansion(path: pathlib.Path, size: int) -> None:
    """Refuses a file that holds more bytes of numbers than a file of weights may."""
    stored = path.stat().st_size
    if size > _MOST_EXPANSION * stored:
        raise UserError(
            f"{path} has {stored:,} bytes, but would take {size:,} bytes of memory, "
            "which files of weights do not; download or export it again."
        )


def _finite(path: pathlib.Path, tensors: Tensors) -> Tensors:
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(
                f"{path} holds numbers in {name} that are not finite as float32; "
                "download or export it again."
            )
    return tensors


class Inert:
    """Replaces an object in a pickle: it keeps the object's data and runs no code.

    Attributes:
      args: arguments of the object's constructor.
      state: state of the object, usually a dict of its attributes.
    """

    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """Keeps the arguments of the constructor."""
        self = super().__new__(cls)
        self.args = args
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_checkpoint(path: pathlib.Path) -> tuple[Tensors, dict[str, Any]]:
    """Reads a checkpoint of a training program that uses PyTorch.

    Args:
      path: file by `torch.save` with a state dict, or with a dict of one as
        `_WRAPPERS` have it and other entries.

    Returns:
      The tensors as from `read`, and the other entries. Objects of NumPy, SciPy and
      scikit-learn in these are `Inert`; see `read_numbers`.

    Raises:
      UserError: as `read`.
    """
    path = _existing(path)
    content, others = _unwrapped(_load_torch(path, stand_in=True))
    found = _named_tensors(path, content)
    return _finite(path, _without_prefix(found)), others


def _unwrapped(content: Any) -> tuple[Any, dict[str, Any]]:
    """The state dict in a checkpoint, and what is beside it."""
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            others = dict(content)
            return others.pop(key), others
    return content, {}


def read_numbers(value: Any) -> list[float]:
    """Reads the numbers of a checkpoint's entry, a number or an array of NumPy.

    The array's bytes are read here, because NumPy trusts the layout in a pickle, down
    to pointers.

    Raises:
      ValueError: if the entry is neither a number nor an array of real numbers.
    """
    if isinstance(value, bool | int | float):
        return [float(value)]
    if not isinstance(value, Inert):
        raise ValueError("neither a number nor an array")
    is_array = isinstance(value.state, tuple) and len(value.state) == 5
    try:
        described, content = value.state[2::2] if is_array else value.args[:2]
        kind, order = described.args[0], described.state[1]
    except (AttributeError, LookupError, TypeError):
        raise ValueError("no array") from None
    if not isinstance(content, bytes) or kind not in _NUMBER_KINDS:
        raise ValueError("no array of real numbers")
    order = order if order in ("<", ">") else "="
    return np.frombuffer(content, np.dtype(f"{order}{kind}")).astype(float).tolist()


def _read_torch(path: pathlib.Path) -> Tensors:
    return _named_tensors(path, _unwrapped(_load_torch(path))[0])


def _load_torch(path: pathlib.Path, *, stand_in: bool = False) -> Any:
    try:
        import torch
    except ImportError as error:
        instead = "" if stand_in else ", or name the same weights as .safetensors"
        raise UserError(
            f"{path} can be read only with PyTorch, which is not installed; run "
            f"pip install -e '.[torch]'{instead}."
        ) from error
    _check_archive(path)
    stood_in: list[tuple[type, str]] = []
    while True:
        try:
            # Builds only tensors and plain containers. Anything else in a pickle could
            # run code, and is refused.
            with torch.serialization.safe_globals(stood_in):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # PyTorch's own message advises to load the file without this safeguard.
            if not any(words in str(error) for words in _REFUSALS):
                reason = ValueError("torch.save did not write its pickle")
                raise _damaged(path, reason) from error
            asked = re.search(r"GLOBAL (\S+)", str(error))
            name = asked[1] if asked and stand_in else ""
            known = {known for _, known in stood_in}
            if not name.startswith(_STOOD_IN) or name in known:
                raise UserError(
                    f"{path} holds something else than tensors, which could run code "
                    "on loading and is refused; export only its state_dict."
                ) from error
            stood_in.append((Inert, name))
        # On a torn file the unpickler, the zip reader or the tensors' sizes fail.
        except Exception as error:
            raise _damaged(path, error) from error


def _check_archive(path: pathlib.Path) -> None:
    """Refuses a file of PyTorch whose compressed members would fill the memory."""
    if not zipfile.is_zipfile(path):
        return  # Another format, of nothing compressed.
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [member.file_size for member in archive.infolist()]
    except Exception as error:  # zipfile, struct and codecs raise their own.
        raise _damaged(path, error) from error
    _check_expansion(path, sum(sizes))


def _named_tensors(path: pathlib.Path, content: Any) -> Tensors:
    import torch

    if not isinstance(content, dict) or not any(map(torch.is_tensor, content.values())):
        raise UserError(
            f"{path} holds no tensors by name, at its top level or in "
            f"{', '.join(_WRAPPERS)}; export only the network's state_dict."
        )
    floats = {
        str(name): tensor
        for name, tensor in content.items()
        if torch.is_tensor(tensor) and tensor.is_floating_point()
    }
    # A tensor may repeat one number of its storage any number of times.
    _check_expansion(path, sum(x.numel() * x.element_size() for x in floats.values()))
    try:
        return {
            name: tensor.detach().to(torch.float32).numpy()
            for name, tensor in floats.items()
        }
    # Sparse tensors, nested tensors, tensors without storage.
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"{path} holds tensors of an unusual layout ({error}); export them as "
            "plain ones."
        ) from error


def _read_safetensors(path: pathlib.Path) -> Tensors:
    import ml_dtypes  # noqa: F401  Lets NumPy know bfloat16.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except AttributeError as error:
        raise UserError(
            f"{path} holds numbers of a kind that is not read ({error}); export them "
            "as float32."
        ) from error
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    return _floats(tensors)


def _read_h5(path: pathlib.Path) -> Tensors:
    import h5py

    tensors, size = {}, 0

    def add(path_in_file, item):
        nonlocal size
        # Keras 1 writes `conv/conv_W_1:0`, Keras 2 `conv/conv/kernel:0`, and Keras 3
        # `layers/conv2d/vars/0` with the layer's name as an attribute of `vars`. The
        # array's rank tells whether it is a bias.
        layer, _, name = path_in_file.partition("/")
        is_array = isinstance(item, h5py.Dataset) and item.shape is not None
        if name and is_array and item.dtype.kind == "f":
            if item.parent.name.endswith("/vars"):
                of_kind = item.parent.name.split("/")[-2]
                layer = item.parent.attrs.get("name", of_kind)
            role = {1: "bias"}.get(item.ndim, "kernel")
            key = f"{layer}/{role}"
            # Compressed zeros shrink a thousandfold, and absent ones take no place.
            size += item.nbytes
            _check_expansion(path, size)
            tensors[f"{layer}/{name}" if key in tensors else key] = item[()]

    try:
        with h5py.File(path, "r") as file:
            # A file of a whole model has its weights in a group.
            root = file.get("model_weights", file)
            root.visititems(add)
    except UserError:
        raise
    # On a torn or odd file, h5py passes on exceptions of many kinds.
    except Exception as error:
        raise _damaged(path, error) from error
    return _floats(tensors)


def _floats(tensors: Tensors) -> Tensors:
    # `_finite` refuses what is too large for float32.
    with np.errstate(over="ignore"):
        return {
            name: np.asarray(tensor, np.float32)
            for name, tensor in tensors.items()
            # NumPy's kind of bfloat16 is V.
            if tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"
        }


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    check_access(path, error)
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return UserError(
        f"{path} is damaged, incomplete, or not what its name says; download it again "
        f"({reason})."
    )
