"""Five methods on three folds of drawn fundi; docs/study.md has the result.

    python scripts/prepare_data.py --dataset=synthetic_fundus --data_dir=demo/data \
        --image_size=64 --num_images=240,60,100 --glaucoma_fraction=0.4
    python scripts/cross_validate.py --config=configs/synthetic_study.py \
        --directory=demo/study --folds=3 --learning_rates=3e-3,1e-2,3e-2 \
        --methods=single,independent,vanilla,gradnorm,pcgrad
    python scripts/make_report.py --experiment=demo/study

The network is the demo's. Of the 300 images for training and validation a fold trains
on 200, so that 48 epochs are 1200 steps: half as many are too few for a network of the
cup alone.
"""

from configs import synthetic_demo


def get_config():
    config = synthetic_demo.get_config()
    config.data.dataset = "synthetic_fundus/64px-240-60-100-glaucoma0.4"
    config.num_epochs = 48
    return config
