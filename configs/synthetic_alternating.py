"""Alternating optimisation (Eq. 2) on drawn fundi, else as configs/synthetic_demo.py.

    python scripts/train.py --config=configs/synthetic_alternating.py \
        --workdir=demo/alternating

As MTL-IO the tasks step in turn, but through one optimizer state.
"""

from configs import synthetic_demo


def get_config():
    config = synthetic_demo.get_config()
    config.method.name = "alternating"
    return config
