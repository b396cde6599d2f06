"""MTL-IO on REFUGE as the original authors' program has it.

    python scripts/train.py --config=configs/refuge_authors.py --workdir=runs/authors

VGG-13, of which the paper's parameter counts are; batch normalisation without running
averages, every photograph by its own statistics in evaluation; the checkpoint of the
smallest validation loss; and that program's way of reading maps and placing points.
The folds of a cross-validation (--config.data.fold=0 to 4) are shuffled and no more.
docs/authors.md lists what differs from the default, and by how much. Otherwise as
configs/refuge_mtl_io.py. Checkpoints of that program become a workdir of this config by
scripts/import_weights.py --architecture=glaucoma_mtl.
"""

from configs import refuge_mtl_io


def get_config():
    config = refuge_mtl_io.get_config()
    config.model.encoder = "vgg13"
    config.model.norm = "batch_no_average"
    config.data.folds = "shuffled"
    config.data.pixel_origin = "corner"
    config.loss.fovea_peak = "pixel"
    config.evaluation.score = "loss"
    config.evaluation.vcdr = "probabilities"
    config.evaluation.connectivity = 4
    config.evaluation.empty = "whole"
    return config
