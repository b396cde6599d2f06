"""Alternating optimisation (Eq. 2) on REFUGE, otherwise as configs/refuge_mtl_io.py.

    python scripts/train.py --config=configs/refuge_alternating.py \
        --workdir=runs/alternating

As MTL-IO the tasks step in turn, but through one optimizer state.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.method.name = "alternating"
    return config
