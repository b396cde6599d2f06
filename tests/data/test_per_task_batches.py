"""Batches in which each task has examples of its own."""

import collections
import copy

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax import tasks
from mtl_jax.data import batching, pipeline

pytest_plugins = ("training_fixtures",)

N = 13  # images of the training split
TASKS = tasks.build()

# Which of the images are annotated for each task.
labels = st.lists(
    st.sets(st.integers(0, N - 1), min_size=1), min_size=4, max_size=4
).map(lambda rows: [sorted(row) for row in rows])


@pytest.fixture(scope="module")
def table(synthetic_data):
    return pipeline.open_split(pipeline.open_dataset(*synthetic_data), "train")


def annotated_for(table, images):
    """The split as if only some of its images were annotated for a task."""
    has_label = np.zeros((N, 4), bool)
    for column, indices in enumerate(images):
        has_label[indices, column] = True
    other = copy.copy(table)
    other._decoded = {**table._decoded, "has_label": has_label}
    return other


def orders(batches, table, count):
    """Indices of the images of batches, [count, B, N]."""
    images = table.take(range(N))["image"]
    places = {image.tobytes(): i for i, image in enumerate(images)}
    return np.array(
        [
            [[places[image.tobytes()] for image in row] for row in batch["image"]]
            for batch, _ in zip(batches, range(count), strict=False)
        ]
    )


@given(images=labels, batch_size=st.sampled_from([1, 3, 4, 13]))
def test_each_task_passes_through_its_own_images_equally_often(
    table, images, batch_size
):
    split, count = annotated_for(table, images), 9
    batches = batching.per_task_batches(split, TASKS, batch_size, seed=0)
    found = orders(batches, table, count)
    assert found.shape == (count, batch_size, 4)
    for k, mine in enumerate(images):
        order = np.ravel(found[..., k])
        passes = len(order) // len(mine)
        whole = order[: passes * len(mine)].reshape(passes, len(mine))
        np.testing.assert_array_equal(np.sort(whole), np.tile(mine, (passes, 1)))
        rest = order[passes * len(mine) :]
        assert set(rest) <= set(mine)
        assert len(set(rest)) == len(rest)


@given(images=labels)
def test_arrays_are_those_of_the_records(table, images):
    split = annotated_for(table, images)
    batches = batching.per_task_batches(split, TASKS, 3, seed=1)
    batch = next(batches)
    indices = orders([batch], table, 1)[0]
    assert set(batch) == set(pipeline.TRAINING_KEYS)
    for key, values in split.take(range(N)).items():
        assert batch[key].dtype == values.dtype
        np.testing.assert_array_equal(batch[key], values[indices])
    for k in range(4):
        assert batch["has_label"][:, k, k].all()


@given(images=labels, seed=st.integers(0, 2**32 - 1), others=labels)
def test_the_order_of_a_task_depends_on_its_images_and_the_seed_alone(
    table, images, seed, others
):
    found = orders(
        batching.per_task_batches(annotated_for(table, images), TASKS, 4, seed),
        table,
        5,
    )
    cup = tasks.build(["cup"])
    changed = annotated_for(table, [*others[:2], images[2], others[3]])
    alone = orders(batching.per_task_batches(changed, cup, 4, seed), table, 5)
    np.testing.assert_array_equal(found[..., 2], alone[..., 0])


def test_seeds_tasks_and_passes_have_different_orders(table):
    first, other = (
        orders(batching.per_task_batches(table, TASKS, N, seed), table, 3)
        for seed in (0, 1)
    )
    streams = [
        x[step, :, k] for x in (first, other) for step in range(3) for k in range(4)
    ]
    assert len({tuple(stream) for stream in streams}) == len(streams)


@given(images=labels, taken=st.integers(0, 9))
def test_a_position_can_be_saved_and_restored(table, images, taken):
    split = annotated_for(table, images)
    batches = batching.per_task_batches(split, TASKS, 4, seed=2)
    for _ in range(taken):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(3)]
    other = batching.per_task_batches(split, TASKS, 4, seed=2)
    next(other)
    other.set_state(state)
    for batch in expected:
        again = next(other)
        for key in pipeline.TRAINING_KEYS:
            np.testing.assert_array_equal(again[key], batch[key])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_tasks_batch(table, processes, monkeypatch):
    split = annotated_for(table, [range(3), range(13), [7], range(5, 9)])
    whole = next(batching.per_task_batches(split, TASKS, 8, seed=3))
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(next(batching.per_task_batches(split, TASKS, 8, seed=3)))
    for key in pipeline.TRAINING_KEYS:
        assert {len(share[key]) for share in shares} == {8 // processes}
        joined = np.concatenate([share[key] for share in shares])
        np.testing.assert_array_equal(joined, whole[key])


def test_a_task_that_needs_several_annotations_has_images_with_all_of_them(table):
    rim = tasks.Task("rim", "rim", "segmentation", ("disc", "cup"), None, "purple")
    split = annotated_for(table, [[0], [1, 2, 3], [3, 4, 1], [5]])
    (images,) = batching.annotated_images(split, [rim])
    np.testing.assert_array_equal(images, [1, 3])
    found = orders(batching.per_task_batches(split, [rim], 4, seed=0), table, 3)
    assert collections.Counter(found.ravel()) == {1: 6, 3: 6}


def test_labels_of_images_that_do_not_fit_into_memory(
    table, synthetic_data, monkeypatch
):
    monkeypatch.setattr(pipeline, "MEMORY_SHARE", 0.0)
    other = pipeline.open_split(pipeline.open_dataset(*synthetic_data), "train")
    assert other._decoded is None
    for split in (other, other.subset([5, 2], "some")):
        same = table.subset(split._rows, "same")
        assert split.has_label().shape == (len(split), 4)
        np.testing.assert_array_equal(split.has_label(), same.has_label())


def test_a_part_of_a_split_is_asked_for_its_own_labels(table):
    split = annotated_for(table, [[0], [1, 2, 3], [3, 4, 1], [5]])
    part = split.subset([5, 3, 1], "part")
    np.testing.assert_array_equal(part.has_label(), split.has_label()[[5, 3, 1]])
    images = batching.annotated_images(part, tasks.build(["glaucoma", "disc", "fovea"]))
    assert [list(indices) for indices in images] == [[], [1, 2], [0]]
