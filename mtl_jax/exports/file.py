"""Writes an exported function to a file, with a JSON beside it, and reads it back."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mtl_jax import files
from mtl_jax.errors import UserError, check_access
from mtl_jax.exports.function import function_of
from mtl_jax.inference import postprocess
from mtl_jax.workdirs import TrainedNetwork

Format = Literal["stablehlo", "onnx"]
FORMATS: tuple[str, ...] = get_args(Format)

PLATFORMS = ("cpu", "cuda", "tpu")

# Protobuf and FlatBuffers hold less than 2**31 bytes; the rest is for the operations.
_MOST_PARAMETERS = 500_000_000

_MEANINGS = {
    "probability": "glaucoma, joined and calibrated",
    "probability_fc": "glaucoma by the classifier",
    "probability_vcdr": "glaucoma by the cup-to-disc ratio of this image",
    "vcdr": "vertical cup-to-disc ratio of this image; NaN without a disc and a cup",
    "map": "probability of each pixel",
    "mask": "1 inside",
    "point": "x, y in pixels of this image; the first pixel's centre is 0, 0",
}


class Export(NamedTuple):
    """An exported network that was read back.

    Attributes:
      function: maps uint8 images [B, H, W, 3] to arrays by name.
      description: the content of the JSON.
    """

    function: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    description: Mapping[str, Any]


def description_of(path: pathlib.Path) -> pathlib.Path:
    """The path of the JSON beside an export."""
    return path.with_name(f"{path.name}.json")


def write(network: TrainedNetwork, output: pathlib.Path, form: Format) -> None:
    """Exports a network.

    Args:
      network: network that `workdirs.load_calibrated` returned.
      output: file to write; an unchanged earlier export there is replaced.
      form: format of the file.

    Raises:
      UserError: if the network cannot be exported so, or something else is in the
        file's place, or it cannot be written.
    """
    output = pathlib.Path(output)
    _check_replaceable(output)
    if network.num_parameters > _MOST_PARAMETERS:
        raise UserError(
            f"The network has {network.num_parameters:,} parameters, and a file holds "
            f"{_MOST_PARAMETERS:,} (2 GB) at most; export it with --format=safetensors."
        )
    function, size = function_of(network), network.image_size
    content, own = _WRITERS[form](network, function, size)
    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((1, size, size, 3), "uint8"))
    description = {
        "mtl_jax": metadata.version("mtl_jax"),
        "format": form,
        "bytes": len(content),
        "sha256": _digest(content),
        **own,
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", size, size, 3],
            "colours": "RGB",
        },
        "outputs": {
            name: {
                "dtype": str(shape.dtype),
                "shape": ["batch", *shape.shape[1:]],
                "meaning": _meaning(name),
            }
            for name, shape in shapes.items()
        },
        "geometry": {
            "image_size": size,
            "shape": network.shape,
            "resizing": "bilinear",
            "pixel_origin": network.post.pixel_origin,
        },
        "network": {
            "tasks": [*network.config.tasks],
            "checkpoint": network.checkpoint,
            "stages": 2 if network.config.method.name == "two_stage" else 1,
            "averaged": max(1, len(network.averaged)),
            "flips": network.is_flipped,
        },
        "reading": dataclasses.asdict(network.post)
        | {"threshold_of_masks": 0.5, "least_peak": postprocess.LEAST_PEAK},
        "classifier": network.classifier and network.classifier._asdict(),
        "calibration": network.calibration and dataclasses.asdict(network.calibration),
        "threshold": network.calibration.threshold if network.calibration else 0.5,
    }
    try:
        files.write_bytes(output, content)
        files.write_json(description_of(output), description)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}); name another output file."
        ) from error


def _meaning(name: str) -> str:
    if name in _MEANINGS:
        return _MEANINGS[name]
    kind, _, task = name.partition("_")
    return f"{task}: {_MEANINGS.get(kind, 'its probability')}"


def _check_replaceable(output: pathlib.Path) -> None:
    """Refuses to replace what is no unchanged export."""
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file to write.")
    beside = description_of(output)
    if not os.path.lexists(output) and not os.path.lexists(beside):
        return
    try:
        described = files.parse_json(beside.read_text(encoding="utf-8"))["sha256"]
        is_ours = not output.exists() or _digest(output.read_bytes()) == described
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise UserError(
            f"{output} or {beside.name} is no unchanged export of mtl_jax and is not "
            "replaced; name another output file, or move this one away."
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _stablehlo(
    network: TrainedNetwork, function: Callable[..., Any], size: int
) -> tuple[bytes, dict[str, Any]]:
    # Without it, jax raises an error that does not name the module.
    import flatbuffers  # noqa: F401

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)

    # Accelerators multiply in lower precision unless told otherwise, and the file is to
    # say the same everywhere.
    with jax.default_matmul_precision("highest"):
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(images)
    return bytes(exported.serialize()), {
        "jax": {
            "version": jax.__version__,
            "calling_convention": exported.calling_convention_version,
            "platforms": [*PLATFORMS],
        }
    }


def _onnx(
    network: TrainedNetwork, function: Callable[..., Any], size: int
) -> tuple[bytes, dict[str, Any]]:
    from mtl_jax.exports import onnx_graph

    for one in network.averaged or (network,):
        for part in one.parts:
            if part.config.model.dtype != "float32":
                raise UserError(
                    f"The network computes in {part.config.model.dtype}, which "
                    "onnxruntime does not on CPUs; export it with --format=stablehlo."
                )
    model = onnx_graph.to_onnx(function, size)
    return model.SerializeToString(deterministic=True), {
        "onnx": {"opset": onnx_graph.OPSET, "ir_version": model.ir_version}
    }


_WRITERS = {"stablehlo": _stablehlo, "onnx": _onnx}


def read(path: pathlib.Path) -> Export:
    """Reads an exported network back.

    Raises:
      UserError: if the file or its JSON is missing or damaged, or the file was written
        by a newer jax, or one that is too old.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"There is no export {path}; write one with mtl-jax export.")
    beside = description_of(path)
    try:
        content = path.read_bytes()
        description = files.parse_json(beside.read_text(encoding="utf-8"))
        form, digest = description["format"], description["sha256"]
        reader = _READERS[form]
    except (OSError, ValueError, KeyError, TypeError) as error:
        check_access(path, error)
        raise UserError(
            f"{beside} is missing or damaged ({type(error).__name__}); export the "
            "network again."
        ) from error
    if _digest(content) != digest:
        raise UserError(
            f"{path} is not the file that {beside.name} describes (its SHA-256 "
            "differs); export the network again."
        )
    return Export(reader(path, content, description), description)


def _read_stablehlo(
    path: pathlib.Path, content: bytes, description: Mapping[str, Any]
) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    import flatbuffers  # noqa: F401

    try:
        version = description["jax"]["calling_convention"]
        writer = description["jax"]["version"]
        least = export.minimum_supported_calling_convention_version
        most = export.maximum_supported_calling_convention_version
        is_known = least <= version <= most
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{description_of(path)} does not name the jax that wrote the file; export "
            "the network again."
        ) from error
    ours = jax.__version__
    advice = (
        f"{path} was written by jax {writer}, and this is jax {ours}, which cannot "
        "open it; install that version, or export the network with this one."
    )
    if not is_known:
        raise UserError(advice)
    try:
        exported = export.deserialize(bytearray(content))
    except Exception as error:
        # What jax raises for files of other versions differs from version to version.
        if writer != ours:
            raise UserError(advice) from error
        raise UserError(
            f"{path} is no function that jax can read ({type(error).__name__}); export "
            "the network again."
        ) from error
    call = jax.jit(exported.call)

    def apply(images: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in call(images).items()}

    return apply


def _read_onnx(
    path: pathlib.Path, content: bytes, description: Mapping[str, Any]
) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(
            content, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"{path} cannot be opened by onnxruntime {onnxruntime.__version__} "
            f"({reason}); update onnxruntime, or export the network again."
        ) from error
    names = [output.name for output in session.get_outputs()]

    def apply(images: np.ndarray) -> Mapping[str, np.ndarray]:
        found = map(np.asarray, session.run(names, {"images": images}))
        return dict(zip(names, found, strict=True))

    return apply


_READERS = {"stablehlo": _read_stablehlo, "onnx": _read_onnx}
