"""Single-task learning on REFUGE, otherwise as configs/refuge_mtl_io.py.

    python scripts/train.py --config=configs/refuge_stl.py \
        --workdir=runs/stl

Four networks, trained one after the other into one workdir, which evaluate.py and
predict.py treat as one model.

The paper's figures on the test split: AUC 87.4, disc Dice 93.9, cup Dice 80.6, fovea
error 6.0 pixels.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.method.name = "single"
    return config
