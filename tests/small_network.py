"""A network that compiles fast: anything with heads will do for a training step."""

import flax.linen as nn

from mtl_jax import tasks
from mtl_jax.models.layers import Dropout, global_max_pool


class SmallNetwork(nn.Module):
    """An encoder and a decoder of one layer each, and a head for every task."""

    dropout: float = 0.0
    axis_name: str | None = None
    norm: bool = True

    @nn.compact
    def __call__(self, images, *, heads=tuple(tasks.TASKS), train=False):
        x = nn.Conv(4, (3, 3), name="trunk")(images)
        if self.norm:
            x = nn.BatchNorm(
                use_running_average=not train,
                axis_name=None if self.is_initializing() else self.axis_name,
                name="norm",
            )(x)
        x = Dropout(self.dropout, self.axis_name)(nn.relu(x), train=train)
        decoded = nn.relu(nn.Dense(4, name="decoder")(x))
        logits = {}
        for head in tasks.TASKS:
            features = global_max_pool(x) if head == "glaucoma" else decoded
            logits[head] = nn.Dense(1, name=f"head_{head}")(features)[..., 0]
        return {head: logits[head] for head in heads}
