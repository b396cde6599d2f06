"""Named tensors from the files of other programs, without running code from them."""

import pathlib
import pickle
from typing import Any

import numpy as np

from mtl_jax.errors import UserError

Tensors = dict[str, np.ndarray]

_SUFFIXES = (".pth", ".pt", ".safetensors", ".h5", ".hdf5")
# What PyTorch's unpickler says of what is well-formed but might run code.
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
    """What stands in for an object of scikit-learn: its attributes and no code.

    Attributes:
      state: what the object was pickled with, as a rule a dict of its attributes.
    """

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """Drops what the object was made from."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_checkpoint(path: pathlib.Path) -> tuple[Tensors, dict[str, Any]]:
    """Reads a checkpoint of a training program that uses PyTorch.

    Args:
      path: a dict of `model_state_dict` and other things, as `torch.save` writes it.

    Returns:
      The tensors, as `read` gives them, and the other things. Objects of scikit-learn
      among these are `Inert`.

    Raises:
      UserError: as `read`.
    """
    path = _existing(path)
    content = _load_torch(path, with_objects=True)
    if not isinstance(content, dict) or "model_state_dict" not in content:
        raise UserError(
            f"{path} has no model_state_dict at its top level; name a checkpoint of "
            "the original program."
        )
    tensors = _named_tensors(path, content.pop("model_state_dict"))
    return _finite(path, tensors), content


def _read_torch(path: pathlib.Path) -> Tensors:
    return _named_tensors(path, _load_torch(path))


def _load_torch(path: pathlib.Path, *, with_objects: bool = False) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} can be read only with PyTorch, which is not installed; run "
            "pip install -e '.[torch]', or name the same weights as .safetensors."
        ) from error
    try:
        # Builds tensors and plain containers, and refuses whatever else a pickle asks
        # for, which could be any code.
        with torch.serialization.safe_globals(_inert(path) if with_objects else []):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own text advises to load such a file without the safeguard.
        if not any(words in str(error) for words in _REFUSALS):
            reason = ValueError("its pickle is not one that torch.save writes")
            raise _damaged(path, reason) from error
        raise UserError(
            f"{path} holds something else than tensors, which could run code on "
            "loading and is refused; export its state_dict alone."
        ) from error
    # A torn file meets the unpickler, the zip reader or the tensors' sizes.
    except Exception as error:
        raise _damaged(path, error) from error


def _inert(path: pathlib.Path) -> list[Any]:
    """What a pickle may ask for besides tensors, and what it gets for it.

    That is arrays of NumPy, and `Inert` for whatever it calls scikit-learn's, which is
    not even imported.
    """
    import torch

    # As files of any version of NumPy may call them.
    functions = {
        f"numpy.{package}.multiarray.{name}": function
        for package in ("core", "_core")
        for name, function in (
            ("_reconstruct", np.empty(0).__reduce__()[0]),
            ("scalar", np.float64(0).__reduce__()[0]),
        )
    }
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?", "O", "U1")),
        *((function, name) for name, function in functions.items()),
        *((Inert, name) for name in named if name.startswith("sklearn.")),
    ]


def _named_tensors(path: pathlib.Path, content: Any) -> Tensors:
    import torch

    if not isinstance(content, dict) or not any(map(torch.is_tensor, content.values())):
        raise UserError(
            f"{path} holds no tensors by name at its top level; export the network's "
            "state_dict alone."
        )
    return {
        str(name): tensor.detach().to(torch.float32).numpy()
        for name, tensor in content.items()
        if torch.is_tensor(tensor) and tensor.is_floating_point()
    }


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
