"""Trains on REFUGE as in the paper: MTL-IO from scratch, or as words after a colon say.

    python scripts/prepare_data.py --dataset=refuge --source=REFUGE
    python scripts/train.py --config=configs/refuge.py --workdir=runs/mtl_io
    python scripts/evaluate.py --workdir=runs/mtl_io --resolution=native

256 x 256 pixels, batches of 8, Adam with learning rate 1e-4, 300 epochs, validation
every 5. --config.data.fold=0 to 4 trains the five folds of the cross-validation.

The words are methods, such as configs/refuge.py:pcgrad (mtl_jax/methods.py lists all),
and the following. A comma separates two words.

* pretrained: the encoder starts from ImageNet's weights, imported with

      python scripts/import_weights.py --source=vgg16_bn-6c64b313.pth \
          --architecture=vgg16_bn --output=weights/vgg16_bn

  docs/pretrained.md says where to find that file.
* authors: the conventions of the authors' program, not the paper's text: VGG-13, batch
  normalisation without running averages, the checkpoint of the smallest validation
  loss, shuffled folds, and that program's way of reading maps and placing points.
  docs/authors.md lists the differences. scripts/import_weights.py
  --architecture=glaucoma_mtl turns checkpoints of that program into such workdirs.
* two_stage, a method, is Res34-Unet (Yu et al. 2019): a U-Net with a ResNet-34 encoder
  finds the optic disc on the whole image; a second one segments disc and cup in a
  square around it. It needs the data set at --image_size=1024. A photograph with its
  masks then takes 5 MB of memory; it is read from disk if less is free.

The table shows the paper's results on the test split (three runs of the official split,
first version on arXiv). They belong to VGG-13 (--config.model.encoder=vgg13), although
the text says VGG-16, the default here.

| words | AUC | disc Dice | cup Dice | fovea error, px |
|---|---|---|---|---|
|  | 92.6 | 91.6 | 81.2 | 5.7 |
| single | 87.4 | 93.9 | 80.6 | 6.0 |
| gradnorm | 86.3 | 80.3 | 68.9 | 28.5 |
| pcgrad | 85.5 | 85.2 | 71.1 | 34.5 |
| pretrained | 96.2 | 94.2 | 84.0 | 5.2 |
| single,pretrained | 94.3 | 95.3 | 85.9 | 5.4 |
"""

from mtl_jax.configuration import authors, defaults


def pretrained(config):
    """Starts the encoder from ImageNet's weights."""
    config.model.pretrained = "weights/vgg16_bn"
    config.method.two_stage_pretrained = "weights/resnet34"


def two_stage(config):
    """Trains Res34-Unet."""
    config.data.dataset = "refuge/1024px"
    config.tasks = ("disc", "cup")
    config.model.encoder = "resnet34"
    config.view.size = 256


def get_config(words=""):
    config = defaults.get_config()
    config.data.dataset = "refuge/256px"
    config.evaluation.cup = "largest"
    changes = {
        "pretrained": pretrained,
        "authors": authors.follow,
        "two_stage": two_stage,
    }
    return defaults.apply_words(config, words, changes)
