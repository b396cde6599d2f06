"""The possible values of the config fields that hold one of a few names."""

import jax.numpy as jnp
import ml_collections

from mtl_jax import metrics

# The networks of the method two_stage by what they see (view.kind), in the order of
# their use.
STAGES = ("whole", "crop")
BATCHES = ("shared", "per_task")
MEMORIES = ("host", "device")
OPTIMIZERS = ("adam", "adamw", "lion", "rmsprop", "sgd")
# Those that keep a moving average of the gradients.
HAVE_MU = ("adam", "adamw", "lion")
SCHEDULES = ("constant", "cosine", "linear")
ON_NONFINITE = ("stop", "skip")
NORMALIZE_INPUT = ("auto", "on", "off")
# Fields that say how a run is made, and nothing of what comes of it.
EXECUTION = ("data.memory", "steps_per_dispatch")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Config = ml_collections.ConfigDict


def scores() -> tuple[str, ...]:
    """What may choose the best checkpoint."""
    return ("mean", *metrics.at("validation"), "loss")
