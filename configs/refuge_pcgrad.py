"""PCGrad (Yu et al. 2020) on REFUGE, otherwise as configs/refuge_mtl_io.py.

    python scripts/train.py --config=configs/refuge_pcgrad.py \
        --workdir=runs/pcgrad

Task gradients are projected off those that they conflict with.

The paper's figures on the test split: AUC 85.5, disc Dice 85.2, cup Dice 71.1, fovea
error 34.5 pixels.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.method.name = "pcgrad"
    return config
