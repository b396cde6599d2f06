"""Vanilla multi-task learning (Eq. 1) on drawn fundi, else as synthetic_demo.py.

    python scripts/train.py --config=configs/synthetic_vanilla.py \
        --workdir=demo/vanilla

One optimizer on the sum of the losses: one forward and one backward pass a step.
"""

from configs import synthetic_demo


def get_config():
    config = synthetic_demo.get_config()
    config.method.name = "vanilla"
    return config
