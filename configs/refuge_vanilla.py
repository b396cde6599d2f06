"""Vanilla multi-task learning (Eq. 1) on REFUGE, otherwise as configs/refuge_mtl_io.py.

    python scripts/train.py --config=configs/refuge_vanilla.py \
        --workdir=runs/vanilla

One optimizer on the sum of the losses: one forward and one backward pass a step.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.method.name = "vanilla"
    return config
