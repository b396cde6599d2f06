"""Data sets and runs that several test files share: a pytest plugin.

A test file asks for it by `pytest_plugins = ("training_fixtures",)`. Compiling is
nearly all that a run of this size costs, so compiled programs, data and runs are shared
by the workers of pytest-xdist, and tests keep to few different programs.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil

import filelock
import numpy as np
import pytest
from PIL import Image

from configs import default
from mtl_jax import configuration, workdirs
from mtl_jax.data import folder, synthetic
from mtl_jax.data.synthetic import renderer

SIZE = 32
BATCH_SIZE = 4
# Three whole batches of training images; one image is left out of every epoch.
NUM_IMAGES = (13, 6, 6)
STEPS_PER_EPOCH = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run; nobody writes to it."""

    workdir: pathlib.Path
    config: configuration.Config

    def copy(self, place):
        """A copy to write to."""
        shutil.copytree(self.workdir, place)
        return place


@contextlib.contextmanager
def once(done, lock):
    """True for the first of several processes; the others wait, then get False."""
    with filelock.FileLock(lock):
        yield not done.exists()


@pytest.fixture(scope="session")
def synthetic_data(shared_dir):
    """Data directory and name of a small synthetic data set."""
    version_dir = synthetic.build(
        shared_dir / "data",
        image_size=SIZE,
        num_images=NUM_IMAGES,
        glaucoma_fraction=0.5,
    )
    return str(shared_dir / "data"), f"synthetic_fundus/{version_dir.parent.name}"


@pytest.fixture(scope="session")
def folder_data(shared_dir):
    """Data directory and name of photographs of several sizes, annotated in part.

    They are stretched, as those that `tiny_run` is trained on.

    The training split has disc masks only, in the test split each image lacks something
    else, and there is no validation split.
    """
    source = shared_dir / "photographs"
    with once(source / "manifest.csv", shared_dir / "photographs.lock") as first:
        if first:
            write_photographs(source)
    version_dir = folder.build(
        shared_dir / "data", source, image_size=SIZE, shape="stretch"
    )
    return str(shared_dir / "data"), f"fundus_folder/{version_dir.parent.name}"


@pytest.fixture(scope="session")
def complete_data(shared_dir):
    """As `folder_data`, with every annotation, and in all three splits."""
    source = shared_dir / "complete"
    with once(source / "manifest.csv", shared_dir / "complete.lock") as first:
        if first:
            write_photographs(source, complete=True)
    version_dir = folder.build(
        shared_dir / "data",
        source,
        image_size=SIZE,
        shape="stretch",
        accept=["fovea_far"],
    )
    return str(shared_dir / "data"), f"fundus_folder/{version_dir.parent.name}"


def write_photographs(source, complete=False):
    """Drawn fundi, with foveas of our own choice, and their manifest."""
    source.mkdir(exist_ok=True)
    lines = ["image_id,image,disc_mask,cup_mask,fovea_x,fovea_y,glaucoma,split,Age"]
    for i in range(11):
        fundus = renderer.render(
            np.random.default_rng(i),
            ((72, 80), (64, 64), (90, 75))[i % 3],
            renderer.EVALUATION_CAMERA,
            bool(i % 2),
        )
        picture = fundus.photograph
        disc, cup = (
            (mask > 0).astype(np.uint8) * 255
            for mask in (fundus.disc_mask, fundus.cup_mask)
        )
        for name, array in (("p", picture), ("d", disc), ("c", cup)):
            Image.fromarray(array).save(source / f"{name}{i}.png")
        fovea = f"{20 + i}.25", "30.5"
        if complete:
            split = "train" if i < 5 else "validation" if i < 8 else "test"
            cells = [f"d{i}.png", f"c{i}.png", *fovea, str(i % 2), split]
        elif i < 5:
            cells = [f"d{i}.png", "", "", "", "", "train"]
        else:
            cells = [
                "" if i == 5 else f"d{i}.png",
                "" if i == 6 else f"c{i}.png",
                *(("", "") if i == 7 else fovea),
                "" if i == 8 else str(i % 2),
                "test",
            ]
        lines.append(",".join([f"eye{i}", f"p{i}.png", *cells, f"{50 + i} years"]))
    (source / "manifest.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def make_config(synthetic_data):
    """A function that makes the config of a small run, given fields by dotted name."""

    def make(fields=None, **top_level):
        config = default.get_config()
        config.data.data_dir, config.data.dataset = synthetic_data
        config.model.encoder = "small"
        config.model.width = 1 / 16
        config.model.norm_momentum = 0.5
        # From the larger kernels masks are found within 48 steps.
        config.model.init = "he_uniform"
        # Its random numbers take seconds to compile.
        config.model.dropout = 0.0
        config.optimizer.learning_rate = 1e-2
        config.batch_size = BATCH_SIZE
        config.num_epochs = 16
        config.validate_every = 4
        config.update_from_flattened_dict({**(fields or {}), **top_level})
        return config

    return make


@pytest.fixture(scope="session")
def trained(shared_dir, compiled):
    """A function that trains once for all tests and workers, and returns the `Run`."""

    def train(name, config):
        workdir = shared_dir / name
        with once(workdir, shared_dir / f"{name}.lock") as first:
            if first:
                workdirs.train(config, shared_dir / f"{name}.unfinished")
                os.replace(shared_dir / f"{name}.unfinished", workdir)
        return Run(workdir, config)

    return train


@pytest.fixture(scope="session")
def tiny_run(trained, make_config):
    """All tasks, with dropout: 16 epochs of 3 steps, validated every 4.

    The network is deep, so that it finds masks.
    """
    fields = {"model.encoder": "vgg13", "model.dropout": 0.8, "seed": 1}
    return trained("tiny_run", make_config(fields))


@pytest.fixture(scope="session")
def glaucoma_run(trained, make_config):
    """The encoder alone, validated in each of 6 epochs."""
    config = make_config(
        {"evaluation.score": "loss"},
        tasks=("glaucoma",),
        num_epochs=6,
        validate_every=1,
    )
    return trained("glaucoma_run", config)


@pytest.fixture(scope="session")
def fovea_run(trained, make_config):
    """One dense task, validated in each of 2 epochs."""
    config = make_config(tasks=("fovea",), num_epochs=2, validate_every=1)
    return trained("fovea_run", config)
