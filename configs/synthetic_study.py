"""Five methods on three folds of the demo's drawn fundi; docs/study.md has the result.

    python scripts/prepare_data.py --dataset=synthetic_fundus --data_dir=demo/data \
        --image_size=96 --num_images=240,60,100 --glaucoma_fraction=0.4
    python scripts/cross_validate.py --config=configs/synthetic_study.py \
        --directory=demo/study --folds=3 \
        --methods=single,independent,vanilla,gradnorm,pcgrad
    python scripts/make_report.py --experiment=demo/study

The config is the demo's. Of its 300 images for training and validation a fold trains on
200, so that 24 epochs are 600 steps.
"""

from configs import synthetic_demo


def get_config():
    return synthetic_demo.get_config()
