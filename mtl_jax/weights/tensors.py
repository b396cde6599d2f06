"""Named tensors from the files of other programs, without running code from them."""

import pathlib
import pickle
import re
from typing import Any

import numpy as np

from mtl_jax.errors import UserError

Tensors = dict[str, np.ndarray]

_SUFFIXES = (".pth", ".pt", ".safetensors", ".h5", ".hdf5")
# What PyTorch's unpickler says of what is well-formed but might run code.
# Objects beside the tensors that get a stand-in, by the beginning of their names.
_STOOD_IN = ("sklearn.", "numpy.", "scipy.")
_NUMBER_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_REFUSALS = ("Unsupported global", "Unsupported class", "Trying to", "Can only")


def read(path: pathlib.Path) -> Tensors:
    """Reads a file of weights.

    Args:
      path: `.pth` or `.pt` as `torch.save` writes a state dict, `.safetensors`, or
        `.h5` as Keras writes it, whose tensors are called `layer/kernel` and
        `layer/bias` here.

    Returns:
      float32 arrays by name; half precision is cast. What holds no floating-point
      numbers, such as counters of batches, is left out.

    Raises:
      UserError: if the file is missing, damaged or of another kind, holds something
        else than tensors, or needs a package that is not installed.
    """
    path = _existing(path)
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"{path} is of no kind that is read here; name a file that ends in "
            f"{', '.join(_SUFFIXES)}."
        )
    readers = {".safetensors": _read_safetensors, ".h5": _read_h5, ".hdf5": _read_h5}
    return _finite(path, readers.get(path.suffix, _read_torch)(path))


def _existing(path: pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"There is no file {path}; name one with weights.")
    return path


def _finite(path: pathlib.Path, tensors: Tensors) -> Tensors:
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(
                f"{path} holds numbers in {name} that are not finite as float32; "
                "download or export it again."
            )
    return tensors


class Inert:
    """What stands in for an object that a pickle describes: what it says, and no code.

    Attributes:
      args: what the object was to be made from.
      state: what it was to be given then, as a rule a dict of its attributes.
    """

    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """Keeps the arguments of whatever was to be called."""
        self = super().__new__(cls)
        self.args = args
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_checkpoint(path: pathlib.Path) -> tuple[Tensors, dict[str, Any]]:
    """Reads a checkpoint of a training program that uses PyTorch.

    Args:
      path: a dict of `model_state_dict` and other things, or that state dict alone, as
        `torch.save` writes it.

    Returns:
      The tensors, as `read` gives them, and the other things. Objects of NumPy and
      scikit-learn among these are `Inert`; see `read_numbers`.

    Raises:
      UserError: as `read`.
    """
    path = _existing(path)
    content = _load_torch(path, stand_in=True)
    others: dict[str, Any] = {}
    if isinstance(content, dict) and "model_state_dict" in content:
        others = dict(content)
        content = others.pop("model_state_dict")
    return _finite(path, _named_tensors(path, content)), others


def read_numbers(value: Any) -> list[float]:
    """The numbers in what a checkpoint holds, which may be an array of NumPy's.

    The array's bytes are read here: NumPy's own way of restoring one trusts the file
    with its layout, down to pointers.

    Raises:
      ValueError: if it is no number and no array of real numbers.
    """
    if isinstance(value, bool | int | float):
        return [float(value)]
    if not isinstance(value, Inert):
        raise ValueError("no number and no array")
    is_array = isinstance(value.state, tuple) and len(value.state) == 5
    described, content = value.state[2::2] if is_array else value.args[:2]
    kind, order = described.args[0], described.state[1]
    if not isinstance(content, bytes) or kind not in _NUMBER_KINDS:
        raise ValueError("no array of real numbers")
    order = order if order in ("<", ">") else "="
    return np.frombuffer(content, np.dtype(f"{order}{kind}")).astype(float).tolist()


def _read_torch(path: pathlib.Path) -> Tensors:
    return _named_tensors(path, _load_torch(path))


def _load_torch(path: pathlib.Path, *, stand_in: bool = False) -> Any:
    try:
        import torch
    except ImportError as error:
        instead = "" if stand_in else ", or name the same weights as .safetensors"
        raise UserError(
            f"{path} can be read only with PyTorch, which is not installed; run "
            f"pip install -e '.[torch]'{instead}."
        ) from error
    stood_in: list[tuple[type, str]] = []
    while True:
        try:
            # Builds tensors and plain containers, and refuses whatever else a pickle
            # asks for, which could be any code.
            with torch.serialization.safe_globals(stood_in):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # PyTorch's own text advises to load such a file without the safeguard.
            if not any(words in str(error) for words in _REFUSALS):
                reason = ValueError("its pickle is not one that torch.save writes")
                raise _damaged(path, reason) from error
            asked = re.search(r"GLOBAL (\S+)", str(error))
            name = asked[1] if asked and stand_in else ""
            known = {known for _, known in stood_in}
            if not name.startswith(_STOOD_IN) or name in known:
                raise UserError(
                    f"{path} holds something else than tensors, which could run code "
                    "on loading and is refused; export its state_dict alone."
                ) from error
            stood_in.append((Inert, name))
        # A torn file meets the unpickler, the zip reader or the tensors' sizes.
        except Exception as error:
            raise _damaged(path, error) from error


def _named_tensors(path: pathlib.Path, content: Any) -> Tensors:
    import torch

    if not isinstance(content, dict) or not any(map(torch.is_tensor, content.values())):
        raise UserError(
            f"{path} holds no tensors by name at its top level; export the network's "
            "state_dict alone."
        )
    try:
        return {
            str(name): tensor.detach().to(torch.float32).numpy()
            for name, tensor in content.items()
            if torch.is_tensor(tensor) and tensor.is_floating_point()
        }
    # Sparse ones, nested ones, ones without storage.
    except (TypeError, RuntimeError, NotImplementedError) as error:
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
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    return _floats(tensors)


def _read_h5(path: pathlib.Path) -> Tensors:
    import h5py

    tensors = {}

    def add(layer, name, item):
        # Both `conv_W_1:0` of Keras 1 and `conv/kernel:0` of Keras 2 end there; what
        # the array is for, its rank tells.
        if isinstance(item, h5py.Dataset):
            role = {1: "bias"}.get(item.ndim, "kernel")
            key = f"{layer}/{role}"
            tensors[f"{layer}/{name}" if key in tensors else key] = item[()]

    try:
        with h5py.File(path, "r") as file:
            # A whole model is saved with its weights in a group of their own.
            root = file.get("model_weights", file)
            for layer, group in root.items():
                if isinstance(group, h5py.Group):
                    group.visititems(lambda n, item, layer=layer: add(layer, n, item))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    return _floats(tensors)


def _floats(tensors: Tensors) -> Tensors:
    return {
        name: np.asarray(tensor, np.float32)
        for name, tensor in tensors.items()
        # bfloat16 is of NumPy's kind V.
        if tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"
    }


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return UserError(
        f"{path} is damaged, incomplete, or not what its name says; download it again "
        f"({reason})."
    )
