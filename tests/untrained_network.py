"""A network that nobody has trained, for what does not depend on that: a plugin."""

import jax
import numpy as np
import pytest

from configs import default
from mtl_jax import configuration, workdirs
from mtl_jax.inference.vcdr import VcdrClassifier

# Of the first seeds, one whose network finds a disc and a cup on drawn fundi.
SEED = 39


@pytest.fixture(scope="session")
def network_folder(tmp_path_factory):
    """A run of random numbers; it finds something, anywhere."""
    config = default.get_config()
    config.model.encoder = "small"
    config.model.width = 1 / 16
    rng = np.random.default_rng(SEED)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        bound = np.sqrt(6 / max(1, np.prod(leaf.shape[:-1])))
        return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

    shapes = configuration.build(config).variable_shapes()
    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    workdir = tmp_path_factory.mktemp("networks") / "run"
    workdirs.write_network(
        workdir,
        config,
        drawn["params"],
        image_size=32,
        shape="fov",
        batch_stats=drawn["batch_stats"],
        classifier=VcdrClassifier(8.0, -4.0, 1),
        origin={},
    )
    return workdir
