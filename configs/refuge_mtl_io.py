"""MTL-IO on REFUGE as in the paper, from scratch.

    python scripts/prepare_data.py --dataset=refuge --source=REFUGE
    python scripts/train.py --config=configs/refuge_mtl_io.py --workdir=runs/mtl_io
    python scripts/evaluate.py --workdir=runs/mtl_io --resolution=native

256 x 256 pixels, batches of 8, Adam with learning rate 1e-4, 300 epochs, validation
every 5. --config.data.fold=0 to 4 trains the five folds of the cross-validation.

The paper's figures on the test split (three runs of the official split, first version
on arXiv): AUC 92.6, disc Dice 91.6, cup Dice 81.2, fovea error 5.7 pixels. They are of
VGG-13 (`--config.model.encoder=vgg13`); its text says VGG-16, the default here.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.dataset = "refuge/256px"
    config.batch_size = 8
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.num_epochs = 300
    config.validate_every = 5
    return config
