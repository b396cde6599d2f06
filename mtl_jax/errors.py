"""Exceptions for mistakes of the user, and sentences on what is not a bug either."""

import errno
import os

# A disk is full: for everybody, for this user, for one file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# A system, a device or a right is lacking, and nothing is wrong with the file.
_NO_ACCESS = (
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
)

# Modules that a minimal installation lacks, by the extra that installs them.
EXTRAS = {
    "data": (
        "array_record",
        "contourpy",
        "etils",
        "grain",
        "openpyxl",
        "PIL",
        "safetensors",
        "sklearn",
        "tensorboardX",
        "tensorflow_datasets",
        "tqdm",
    ),
    "report": ("jinja2", "markupsafe", "matplotlib", "pandas", "pyarrow"),
    "weights": ("h5py", "safetensors"),
    "dicom": ("pydicom",),
    "heic": ("pillow_heif",),
    "export": ("flatbuffers", "onnx", "onnxruntime"),
    "serve": ("starlette", "uvicorn"),
}


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one sentence that says what is wrong, where, and what to do. Commands
    print it without a traceback and exit with code 1. Every other exception is a bug.
    """


class NotFinite(UserError):
    """A loss, parameter or output is not finite, and the run cannot continue."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to end, and what was to be saved is saved.

    Attributes:
      signal: number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """A sentence that names the extra which installs a module; None if none does."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return (
                f"{module} is not installed; install mtl_jax[{extra}], or mtl_jax[all] "
                "for every command."
            )
    return None


def no_room(error: BaseException | None) -> str | None:
    """Returns the system's reason if an error says that a disk is full; else None."""
    return _reason(error, _NO_ROOM)


def no_access(error: BaseException | None) -> str | None:
    """Returns the system's reason if an error says that a file could not be read.

    It proves nothing about the file's content, and None is returned for all else.
    """
    return _reason(error, _NO_ACCESS)


def check_access(path: object, error: BaseException) -> None:
    """Keeps a file that could not be read from being called damaged.

    Raises:
      UserError: if the error says nothing of the file's content.
    """
    if reason := no_access(error):
        raise UserError(
            f"{path} cannot be read ({reason}); that says nothing of its content, so "
            "see to the cause, or name another."
        ) from error


def _reason(error: BaseException | None, numbers: tuple[int, ...]) -> str | None:
    """Returns what the system calls one of some errors, if that is the cause.

    Libraries raise exceptions of their own, and of many types, in which that reason is
    a part of the text.
    """
    while error is not None:
        for number in numbers:
            if (reason := os.strerror(number)) in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None
