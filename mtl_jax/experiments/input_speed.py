"""Times the input pipeline by itself."""

import contextlib
import tempfile
import time

from mtl_jax.data import batching, pipeline, synthetic

# Drawn images, which are read again and again.
NUM_IMAGES = 64
SECONDS = 2.0


def images_per_second(image_size: int, batch_size: int) -> dict[str, float]:
    """Measures how fast training is given batches, on drawn fundi.

    Returns:
      `from_memory`, where the data set is decoded once, and `from_files`, where it is
      too large for that.
    """
    with tempfile.TemporaryDirectory() as folder:
        counts = (max(NUM_IMAGES, batch_size), 1, 1)
        version = synthetic.build(folder, image_size=image_size, num_images=counts)
        name = str(version.parent.relative_to(folder))
        split = pipeline.open_split(pipeline.open_dataset(folder, name), "train")
        return {
            "from_memory": _rate(split, batch_size),
            "from_files": _rate(split.from_files(), batch_size),
        }


def _rate(split: pipeline.Split, batch_size: int) -> float:
    # Threads that still read would take time from the steps.
    with contextlib.closing(
        batching.training_batches(split, batch_size, seed=0)
    ) as batches:
        next(batches)
        start, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < SECONDS:
            next(batches)
            count += batch_size
    return count / passed
