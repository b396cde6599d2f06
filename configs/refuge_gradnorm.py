"""GradNorm (Chen et al. 2018) on REFUGE, otherwise as configs/refuge_mtl_io.py.

    python scripts/train.py --config=configs/refuge_gradnorm.py \
        --workdir=runs/gradnorm

Task weights are learnt that keep the gradient norms in balance.

The paper's figures on the test split: AUC 86.3, disc Dice 80.3, cup Dice 68.9, fovea
error 28.5 pixels.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.method.name = "gradnorm"
    return config
