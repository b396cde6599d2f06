"""A network for each task on REFUGE from an ImageNet encoder, else as refuge_stl.py.

    python scripts/import_weights.py --source=vgg16_bn-6c64b313.pth \
        --architecture=vgg16_bn --output=weights/vgg16_bn
    python scripts/train.py --config=configs/refuge_stl_pretrained.py \
        --workdir=runs/stl_pretrained

The paper's figures on the test split: AUC 94.3, disc Dice 95.3, cup Dice 85.9, fovea
error 5.4 pixels (three runs of the official split, first version on arXiv).
"""

from configs import refuge_stl


def get_config():
    config = refuge_stl.get_config()
    config.model.pretrained = "weights/vgg16_bn"
    # Of res34_unet, where an experiment with this config has it among its methods.
    config.method.res34_pretrained = "weights/resnet34"
    return config
