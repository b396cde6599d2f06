"""Settings and inputs that the tests share.

Tests see one CPU device, whatever the machine has; set JAX_PLATFORMS to run them
elsewhere. What several devices do is tested in a process of its own
(`training/test_parallel.py`): the flag that simulates them holds for a whole process.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Without them XLA compiles programs of tests in half the time.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
)
# PyTorch's threads wait for each other by spinning: on cores that other workers share,
# they take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For the processes that tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
)

import hypothesis
import jax
import numpy as np
import pytest
import small_encoder  # noqa: F401  # It registers an encoder.
from jax.experimental.compilation_cache import compilation_cache

from mtl_jax.models import MultiTaskUNet

# Test files import from these plugins before they name them; pytest rewrites the
# assertions only of what it knows of before its first import.
pytest.register_assert_rewrite(
    "training_fixtures", "run_files", "browser", "served_page"
)

# Shared machines: no example has a time limit. Derandomized: a failure comes again.
hypothesis.settings.register_profile(
    "mtl_jax", deadline=None, derandomize=True, max_examples=25
)
# As --hypothesis-profile=long: a search for new defects, not a test.
hypothesis.settings.register_profile(
    "long",
    deadline=None,
    max_examples=2000,
    phases=[p for p in hypothesis.Phase if p != hypothesis.Phase.shrink],
    suppress_health_check=[*hypothesis.HealthCheck],
)
hypothesis.settings.load_profile("mtl_jax")


def pytest_addoption(parser):
    """Adds the flags of tests that take minutes in their long form."""
    parser.addoption(
        "--every_damage",
        action="store_true",
        help="Damage each file of a checkpoint, not eight of them (tests/faults).",
    )
    parser.addoption(
        "--every_kill",
        action="store_true",
        help="Kill four methods twenty times, not one twice (tests/faults).",
    )


def pytest_collection_modifyitems(items):
    """Begins with minutes of waiting for processes, while other workers compute."""
    items.sort(key=lambda item: item.path.name != "test_distributed.py")


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory):
    """A folder that all workers of this test session share."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    place = base / "shared"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(scope="session", autouse=True)
def compiled(shared_dir):
    """Environment of a process that shares compiled programs.

    It is also that of this process, so that no test writes to the user's cache.
    """
    settings = {
        # Several test sessions may be told to share them.
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or str(shared_dir / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_disable_most_optimizations": True,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
    # What compiled before the folder was named has settled that there is no cache.
    compilation_cache.reset_cache()
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    return dict(os.environ)


def _disc(size, centres, radii):
    ys, xs = np.mgrid[:size, :size]
    x, y = centres.T[..., None, None]
    return ((xs - x) ** 2 + (ys - y) ** 2 <= radii[:, None, None] ** 2).astype(np.uint8)


@pytest.fixture(scope="session")
def make_batch():
    """A function that makes a fully annotated batch, read-only NumPy arrays."""

    def make(size=4, image_size=32, seed=0):
        rng = np.random.default_rng(seed)
        centres = rng.uniform(0.35, 0.65, (size, 2)) * image_size
        radii = rng.uniform(0.18, 0.25, size) * image_size
        batch = {
            "image": rng.integers(
                0, 256, (size, image_size, image_size, 3), dtype=np.uint8
            ),
            "disc_mask": _disc(image_size, centres, radii),
            "cup_mask": _disc(image_size, centres, radii * rng.uniform(0.4, 0.8, size)),
            "fovea_xy": rng.uniform(0.2, 0.8, (size, 2)).astype(np.float32)
            * np.float32(image_size),
            "glaucoma": (np.arange(size) % 3 == 0).astype(np.float32),
            "has_label": np.ones((size, 4), bool),
        }
        for array in batch.values():
            array.setflags(write=False)
        return batch

    return make


@pytest.fixture(scope="session")
def tiny_batch(make_batch):
    """Four annotated images of 32 x 32 pixels."""
    return make_batch()


@pytest.fixture(scope="session")
def tiny_model():
    """The whole network with 4 to 32 channels, without dropout."""
    return MultiTaskUNet(encoder="vgg13", width=1 / 16, dropout=0.0)


@pytest.fixture(scope="session")
def random_variables():
    """A function that draws all variables of a network, in NumPy.

    It compiles nothing, and biases, scales and running averages are away from the zeros
    and ones that an initialisation gives them, behind which mistakes could hide.
    """

    def draw(model, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(path, shape):
            name = path[-1].key
            if name == "kernel":
                bound = np.sqrt(6 / np.prod(shape.shape[:-1]))
                return rng.uniform(-bound, bound, shape.shape).astype(np.float32)
            if name in ("scale", "var"):
                return rng.uniform(0.7, 1.3, shape.shape).astype(np.float32)
            return rng.uniform(-0.2, 0.2, shape.shape).astype(np.float32)

        images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return draw
