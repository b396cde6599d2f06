"""Each file of a checkpoint is truncated, deleted and flipped, and then read.

A reader gets the numbers that were saved at the step that it is told, with a warning if
it is not the step that it would be without the damage, or one sentence.

The long form prints a table of all of them: pytest tests/faults --every_damage -s.
"""

import collections
import json
import random

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mtl_jax import workdirs
from mtl_jax.data import batching, pipeline
from mtl_jax.errors import UserError
from mtl_jax.training import checkpoints
from mtl_jax.training.state import TrainState

pytest_plugins = ("training_fixtures",)
# TensorStore goes on reading the other arrays, for an event loop that is closed.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def flip(content, number):
    bit = random.Random(f"{len(content)} {number}").randrange(8 * len(content))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


DAMAGE = {
    "deleted": lambda content: None,
    "emptied": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "flipped bit 1": lambda content: flip(content, 1),
    "flipped bit 2": lambda content: flip(content, 2),
}


@pytest.fixture(scope="module")
def resume(tiny_run):
    """A function that reads the latest checkpoint as a resumption does, or another."""
    data = tiny_run.config.data
    dataset = pipeline.open_dataset(data.data_dir, data.dataset)
    train = pipeline.open_split(dataset, "train")
    whole = checkpoints.Checkpoints(tiny_run.workdir, read_only=True)
    with ocp.StandardCheckpointer() as checkpointer:
        model, optimizer = (
            checkpointer.restore(whole.path(whole.latest()) / item)
            for item in ("model", "optimizer")
        )
    target = TrainState(
        step=np.asarray(optimizer["step"]),
        opt_state=optimizer["opt_state"],
        key=jax.random.key(0),
        **model,
    )

    def resume(workdir, step=None):
        opened = checkpoints.Checkpoints(workdir)
        step = opened.latest() if step is None else step
        batches = batching.training_batches(train, tiny_run.config.batch_size, 1)
        state = opened.restore(step, target, batches)
        key = jax.random.key_data(state.key)
        tree = (state.params, state.batch_stats, state.opt_state, state.step, key)
        metadata = opened.restore_metadata(step)
        return step, in_bytes([tree, next(batches)], metadata)

    return resume


def load(workdir, checkpoint):
    """Reads a network as evaluation and prediction do."""
    network = workdirs.load(workdir, str(checkpoint))
    return int(network.checkpoint), in_bytes(network.networks[0][1], network.metadata)


def in_bytes(tree, metadata):
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
    return leaves, json.dumps(metadata)


@pytest.fixture(scope="module")
def readers(resume):
    """Functions from a workdir, and a step if not their own, to a step and numbers."""
    return {
        "latest": lambda workdir, step="latest": load(workdir, step),
        "best": lambda workdir, step="best": load(workdir, step),
        "resume": resume,
    }


@pytest.fixture(scope="module")
def whole(tiny_run, readers):
    """What each reader reads without damage, and at each step."""
    steps = checkpoints.Checkpoints(tiny_run.workdir, read_only=True).steps()
    assert len(steps) > 1
    networks, states = (
        dict(readers[name](tiny_run.workdir, step) for step in steps)
        for name in ("latest", "resume")
    )
    return {
        name: (read(tiny_run.workdir)[0], states if name == "resume" else networks)
        for name, read in readers.items()
    }


def outcome(path, damage, read, workdir, own, numbers, capsys):
    """Damages a file, reads, and mends the file."""
    content = path.read_bytes()
    changed = DAMAGE[damage](content)
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    checkpoints._note.cache_clear()
    capsys.readouterr()
    try:
        step, found = read(workdir)
    except UserError as error:
        # Whatever else is raised is a traceback, and fails the test.
        step, found = None, str(error)
    path.write_bytes(content)
    if step is None:
        assert str(workdir) in found
        assert "\n" not in found
        return "a sentence"
    assert found == numbers[step]
    if step == own:
        return "the right numbers"
    assert "is damaged" in capsys.readouterr().err
    return "another checkpoint, with a note"


def cases(workdir, whole):
    """Each reader, with each damage to each file of the checkpoint that it reads."""
    return [
        (path, damage, name)
        for name, (step, _) in whole.items()
        for path in sorted((workdir / f"checkpoints/{step}").rglob("*"))
        for damage in DAMAGE
        if path.is_file()
    ]


def test_damage(request, tiny_run, readers, whole, tmp_path, capsys):
    workdir = tiny_run.copy(tmp_path / "run")
    table = collections.defaultdict(collections.Counter)
    chosen = cases(workdir, whole)
    if not request.config.getoption("--every_damage"):
        chosen = random.Random(0).sample(chosen, 8)
    for path, damage, name in chosen:
        found = outcome(path, damage, readers[name], workdir, *whole[name], capsys)
        table[damage][found] += 1
        # What Orbax adds after the digests changes no number, and proves nothing.
        own, _ = whole[name]
        name = path.relative_to(workdir / f"checkpoints/{own}").as_posix()
        if name not in checkpoints._WRITTEN_LAST:
            assert found == "another checkpoint, with a note", (path, damage)
    columns = sorted(set().union(*table.values()))
    print("\n| |", " | ".join(columns), "|")
    for damage, counts in table.items():
        print("|", damage, "|", " | ".join(str(counts[c]) for c in columns), "|")
