"""PCGrad (Yu et al. 2020) on drawn fundi, otherwise as configs/synthetic_demo.py.

    python scripts/train.py --config=configs/synthetic_pcgrad.py \
        --workdir=demo/pcgrad

Task gradients are projected off those that they conflict with.
"""

from configs import synthetic_demo


def get_config():
    config = synthetic_demo.get_config()
    config.method.name = "pcgrad"
    return config
