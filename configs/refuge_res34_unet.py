"""Res34-Unet (Yu et al. 2019) on REFUGE: optic disc and cup in two stages.

    python scripts/prepare_data.py --dataset=refuge --source=REFUGE --image_size=1024
    python scripts/train.py --config=configs/refuge_res34_unet.py \
        --workdir=runs/res34_unet

A U-Net with a ResNet-34 encoder finds the disc on the whole image at 256 x 256 pixels;
a second one segments disc and cup in a square around it, twice as large as the disc, at
256 x 256 pixels of its own. Evaluated and predicted with like any other workdir; of
fovea and glaucoma it says nothing. With --config.model.pretrained=weights/resnet34
both start from torchvision's resnet34 (docs/pretrained.md). At 1024 x 1024 pixels a
photograph with its masks takes 5 MB of memory, that is 4 GB for training and
validation; where so much is not free they are read from disk.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.data.dataset = "refuge/1024px"
    config.tasks = ("disc", "cup")
    config.model.encoder = "resnet34"
    config.method.name = "two_stage"
    config.view.size = 256
    return config
