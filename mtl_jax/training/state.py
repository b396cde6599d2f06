"""What a training step takes and gives back."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """All that changes during training.

    Attributes:
      step: int32 scalar, steps taken.
      params: of the network.
      batch_stats: running averages of normalisation; empty where there are none.
      opt_state: of the optimizer.
      key: random key that every step's randomness is derived from; it never changes.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    key: jax.Array
