"""Single-task learning on drawn fundi, otherwise as configs/synthetic_demo.py.

    python scripts/train.py --config=configs/synthetic_stl.py \
        --workdir=demo/stl

Four networks, trained one after the other into one workdir, which evaluate.py and
predict.py treat as one model.
"""

from configs import synthetic_demo


def get_config():
    config = synthetic_demo.get_config()
    config.method.name = "single"
    return config
