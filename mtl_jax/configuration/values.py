"""The possible values of the config fields that hold one of a few names."""

import jax.numpy as jnp
import ml_collections

# The networks of the method two_stage by what they see (view.kind), in the order of
# their use.
STAGES = ("whole", "crop")
OPTIMIZERS = ("adam", "adamw", "lion", "rmsprop", "sgd")
SCHEDULES = ("constant", "cosine", "linear")
SCORES = ("mean", "auc", "dice_disc", "dice_cup", "fovea_error", "loss")
# The task that a score is of, where it is one task's.
SCORED = {"dice_disc": "disc", "dice_cup": "cup", "fovea_error": "fovea"}
NORMALIZE_INPUT = ("auto", "on", "off")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Config = ml_collections.ConfigDict
