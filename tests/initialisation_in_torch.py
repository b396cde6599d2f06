"""How often vanilla MTL finds the optic cup under PyTorch; docs/initialisation.md.

    python tests/initialisation_in_torch.py demo/data SEEDS

The authors' network, torch.nn's own initialisation, torch.optim's Adam: nothing of the
network, the losses or the step is ours. The images, their order and their augmentation
are those of configs/synthetic.py:vanilla.
"""

import math
import sys

import jax
import numpy as np
import torch
from original_program import forward, original_network
from torch import nn
from torch.nn import functional

from configs import synthetic
from mtl_jax import configuration
from mtl_jax.data import pipeline

TASKS = ("glaucoma", "disc", "cup", "fovea")
LEARNING_RATE = 5e-3


def create(config, seed):
    """The network as PyTorch begins it."""
    torch.manual_seed(seed)
    network = original_network(torch, config.model.width)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            # original_network has those of the authors, which use the batch's alone.
            module.register_buffer("running_mean", torch.zeros(module.num_features))
            module.register_buffer("running_var", torch.ones(module.num_features))
            module.track_running_stats = True
            module.momentum = 1 - config.model.norm_momentum
    network.outfc.fc.register_forward_pre_hook(
        lambda layer, pooled: functional.dropout(
            *pooled, config.model.dropout, layer.training
        )
    )
    return network


def loss_of(config, logits, batch):
    """The sum of the four tasks' losses."""
    target = torch.tensor(np.asarray(batch["glaucoma"]))
    entropy = functional.binary_cross_entropy_with_logits(
        logits["glaucoma"], target, reduction="none"
    )
    loss = ((1 - torch.exp(-entropy)) ** config.loss.focal_gamma * entropy).mean()
    for task in ("disc", "cup"):
        mask = torch.tensor(np.asarray(batch[f"{task}_mask"], np.float32))
        loss = loss + functional.binary_cross_entropy_with_logits(logits[task], mask)
    size = logits["fovea"].shape[-1]
    rows, columns = np.mgrid[:size, :size]
    maps = [
        np.exp(
            -((columns - x) ** 2 + (rows - y) ** 2)
            / (2 * (config.loss.fovea_sigma * size) ** 2)
        )
        for x, y in np.asarray(batch["fovea_xy"])
    ]
    target = torch.tensor(np.stack(maps, dtype=np.float32))
    return loss + functional.l1_loss(torch.sigmoid(logits["fovea"]), target)


def tensor(images):
    """As PyTorch has them."""
    return torch.tensor(np.asarray(images, np.float32)).permute(0, 3, 1, 2)


def dice_of_cup(network, table):
    """On thresholded maps; images without a cup in them count 0."""
    network.eval()
    values = []
    for _, batch in pipeline.evaluation_batches(table, 20):
        with torch.no_grad():
            logits = forward(torch, network, tensor(batch["image"] / 255))["cup"]
        ours, theirs = logits.numpy() > 0, np.asarray(batch["cup_mask"]) > 0
        both = (ours & theirs).sum((1, 2))
        values += list(2 * both / (ours.sum((1, 2)) + theirs.sum((1, 2))))
    return np.mean(values)


def train(config, dataset, seed):
    """Dice of the cup on the test split after the training."""
    table = pipeline.open_split(dataset, "train")
    batches = pipeline.training_batches(table, config.batch_size, seed)
    num_steps = config.num_epochs * (len(table) // config.batch_size)
    augment = jax.jit(configuration.build(config).augment)
    network = create(config, seed).train()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / num_steps)) / 2
    )
    for step in range(num_steps):
        batch = next(batches)
        batch = {**batch, "image": batch["image"].astype(np.float32) / 255}
        key = jax.random.fold_in(jax.random.key(seed), step)
        batch = augment(key, batch, np.arange(config.batch_size))
        logits = forward(torch, network, tensor(batch["image"]), TASKS)
        optimizer.zero_grad()
        loss_of(config, logits, batch).backward()
        optimizer.step()
        schedule.step()
    return dice_of_cup(network, pipeline.open_split(dataset, "test"))


if __name__ == "__main__":
    config = synthetic.get_config("vanilla")
    dataset = pipeline.open_dataset(
        sys.argv[1], "synthetic_fundus/64px-240-60-100-glaucoma0.4"
    )
    for seed in range(int(sys.argv[2])):
        dice = train(config, dataset, seed)
        print(f"seed {seed}: cup Dice {dice:.3f}", flush=True)
