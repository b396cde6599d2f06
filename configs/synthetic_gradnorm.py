"""GradNorm (Chen et al. 2018) on drawn fundi, otherwise as configs/synthetic_demo.py.

    python scripts/train.py --config=configs/synthetic_gradnorm.py \
        --workdir=demo/gradnorm

Task weights are learnt that keep the gradient norms in balance.
"""

from configs import synthetic_demo


def get_config():
    config = synthetic_demo.get_config()
    config.method.name = "gradnorm"
    return config
