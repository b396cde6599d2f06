"""Workdirs: the folders that networks are trained into and read back from.

A workdir holds one network. If its method trains several, it holds a folder for each.
`export` makes a smaller folder of it, without optimizers, which is read alike.
"""

from mtl_jax.workdirs._averaged import (
    as_folders,
    identity,
    load_averaged,
    load_calibrated,
    write_calibration,
)
from mtl_jax.workdirs._claim import InUse, claim, locked
from mtl_jax.workdirs._export import Exported, export
from mtl_jax.workdirs._imported import write_imported, write_network
from mtl_jax.workdirs._portable import BUILT_IN, is_portable
from mtl_jax.workdirs._train import load_pretrained, train
from mtl_jax.workdirs._trained import (
    TrainedNetwork,
    encoder_of,
    fit_missing_classifier,
    load,
    load_kind,
)

__all__ = [
    "BUILT_IN",
    "Exported",
    "InUse",
    "TrainedNetwork",
    "as_folders",
    "claim",
    "encoder_of",
    "export",
    "fit_missing_classifier",
    "identity",
    "is_portable",
    "load",
    "load_averaged",
    "load_calibrated",
    "load_kind",
    "load_pretrained",
    "locked",
    "train",
    "write_calibration",
    "write_imported",
    "write_network",
]
