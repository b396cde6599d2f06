"""MTL-IO on REFUGE with the network of the original authors' program.

    python scripts/train.py --config=configs/refuge_authors.py --workdir=runs/authors

VGG-13, of which the paper's parameter counts are, and batch normalisation without
running averages: every photograph is normalised by its own statistics in evaluation.
The folds of a cross-validation (--config.data.fold=0 to 4) are shuffled and no more, as
in the paper. Otherwise as configs/refuge_mtl_io.py. Checkpoints of that program become
a workdir of this config by scripts/import_weights.py --architecture=glaucoma_mtl.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.model.encoder = "vgg13"
    config.model.norm = "batch_no_average"
    config.data.folds = "shuffled"
    return config
