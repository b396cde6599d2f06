"""MTL-IO on REFUGE from an ImageNet encoder, else as refuge_mtl_io.py.

    python scripts/import_weights.py --source=vgg16_bn-6c64b313.pth \
        --architecture=vgg16_bn --output=weights/vgg16_bn
    python scripts/train.py --config=configs/refuge_mtl_io_pretrained.py \
        --workdir=runs/mtl_io_pretrained

The paper's figures on the test split: AUC 96.2, disc Dice 94.2, cup Dice 84.0, fovea
error 5.2 pixels (three runs of the official split, first version on arXiv).
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.model.pretrained = "weights/vgg16_bn"
    # Of res34_unet, where an experiment with this config has it among its methods.
    config.method.res34_pretrained = "weights/resnet34"
    return config
