"""From the records of a split to batches.

Grain shuffles indices rather than images, so that a few numbers are the position in the
shuffled stream, and a checkpoint can hold them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy

from mtl_jax.data.pipeline import Split
from mtl_jax.errors import UserError
from mtl_jax.tasks import Task

# Prediction on photographs needs none of it, and importing it takes long.
with epy.lazy_imports():
    import grain


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Counts the full batches in one pass over a split.

    Raises:
      UserError: if the split is smaller than one batch.
    """
    if len(split) < batch_size:
        raise UserError(
            f"{split.name} has {len(split)} images, fewer than one batch of "
            f"{batch_size}; lower config.batch_size."
        )
    return len(split) // batch_size


def training_batches(
    split: Split, batch_size: int, seed: int, places_only: bool = False
) -> grain.DatasetIterator:
    """Returns endless batches, shuffled anew in every epoch.

    The remainder of an epoch is dropped. The order depends only on seed and epoch. Each
    process receives its share of every batch. The iterator's `get_state` and
    `set_state` save and restore its position.

    Args:
      split: the training split.
      batch_size: images of one batch, over all processes.
      seed: seed of the order.
      places_only: whether a batch has nothing but the places of its examples in the
        split, int32 [share] by the key `index`.
    """
    share = batch_size // jax.process_count()
    start = share * jax.process_index()
    take = _taking(split, places_only)
    return iter(
        grain.MapDataset.range(len(split))
        .seed(seed)
        .shuffle()
        .batch(batch_size, drop_remainder=True)
        .repeat()
        .map(lambda indices: take(indices[start : start + share]))
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )


def _taking(
    split: Split, places_only: bool
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    if places_only:
        return lambda indices: {"index": indices.astype(np.int32)}
    return split.take


def annotated_images(split: Split, tasks: Sequence[Task]) -> list[np.ndarray]:
    """Finds the images of a split that each task can learn from.

    Returns:
      The indices of the images with all labels of the task, for each task.
    """
    labels = {"has_label": jnp.asarray(split.has_label())}
    return [np.flatnonzero(task.is_labelled(labels)) for task in tasks]


def per_task_batches(
    split: Split,
    tasks: Sequence[Task],
    batch_size: int,
    seed: int,
    places_only: bool = False,
) -> grain.DatasetIterator:
    """Returns endless batches with examples of each task's own.

    The arrays have a task axis after the axis of examples: the images are
    [B, N, H, W, 3]. Each task passes through the images annotated for it, shuffled anew
    in every pass. A batch may reach from one pass into the next, so a task needs no
    more than one image. The order of a task depends only on the seed and its name, not
    on the other tasks. Shares and positions are as in `training_batches`.

    Args:
      split: the training split.
      tasks: in the order of the task axis, each with an image annotated for it.
      batch_size: images of each task in one batch, over all processes.
      seed: seed of the order.
      places_only: as for `training_batches`.
    """
    share = batch_size // jax.process_count()
    start = share * jax.process_index()
    images = annotated_images(split, tasks)
    take_records = _taking(split, places_only)

    def take(step: int) -> dict[str, np.ndarray]:
        places = step * batch_size + start + np.arange(share)
        indices = np.stack(
            [
                _draw(mine, places, (seed, *task.name.encode()))
                for task, mine in zip(tasks, images, strict=True)
            ],
            axis=1,
        )
        batch = take_records(indices.ravel())
        return {k: v.reshape(*indices.shape, *v.shape[1:]) for k, v in batch.items()}

    return iter(
        grain.MapDataset.range(sys.maxsize)
        .map(take)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )


def _draw(images: np.ndarray, places: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """Returns the images at some places of endless passes, each in its own order.

    Grain's shuffling takes 5 ms for each of a dozen images, and less for more.
    """
    passes, within = np.divmod(places, len(images))
    orders = {
        number: np.random.default_rng((number, *seed)).permutation(images)
        for number in set(passes.tolist())
    }
    return np.array([orders[n][i] for n, i in zip(passes, within, strict=True)])


def evaluation_batches(
    split: Split, batch_size: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Passes once over a split in order.

    Copies without labels fill up the last batch.

    Yields:
      The indices of the batch's records, without the copies; and the batch with the
      additional key `weight` [B], 1 for a record and 0 for a copy.
    """
    for start in range(0, len(split), batch_size):
        indices = list(range(start, min(start + batch_size, len(split))))
        padding = batch_size - len(indices)
        batch = split.take(indices + indices[-1:] * padding)
        weight = np.arange(batch_size) < len(indices)
        yield (
            indices,
            {
                **batch,
                "has_label": batch["has_label"] & weight[:, None],
                "weight": weight.astype(np.float32),
            },
        )
