"""MTL-IO on REFUGE with the network of the original authors' program.

    python scripts/train.py --config=configs/refuge_authors.py --workdir=runs/authors

VGG-13, of which the paper's parameter counts are, and batch normalisation without
running averages: every photograph is normalised by its own statistics in evaluation.
Otherwise as configs/refuge_mtl_io.py. Checkpoints of that program become a workdir of
this config by scripts/import_weights.py --architecture=glaucoma_mtl.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.model.encoder = "vgg13"
    config.model.norm = "batch_no_average"
    return config
