"""GradNorm on REFUGE from an ImageNet encoder, else as refuge_gradnorm.py.

    python scripts/import_weights.py --source=vgg16_bn-6c64b313.pth \
        --architecture=vgg16_bn --output=weights/vgg16_bn
    python scripts/train.py --config=configs/refuge_gradnorm_pretrained.py \
        --workdir=runs/gradnorm_pretrained

docs/pretrained.md says where that file is from.
"""

from configs import refuge_gradnorm


def get_config():
    config = refuge_gradnorm.get_config()
    config.model.pretrained = "weights/vgg16_bn"
    # Of res34_unet, where an experiment with this config has it among its methods.
    config.method.res34_pretrained = "weights/resnet34"
    return config
