"""Optimisers over several task losses, for any JAX model.

Joint: all task gradients are taken at one point and stacked on a leading task axis; an
`optax.GradientTransformationExtraArgs`, first in an `optax.chain`, makes one step of
them. Sequential: a task's gradient is taken where the task before it left the
parameters, see `SequentialOptimizer`.
"""

from mtl_jax.optim._alternating import alternating
from mtl_jax.optim._by_step import ByStepState, by_step
from mtl_jax.optim._gradnorm import GradNormState, gradnorm, gradnorm_weighting
from mtl_jax.optim._independent import independent
from mtl_jax.optim._interference import interference
from mtl_jax.optim._paths import choose
from mtl_jax.optim._pcgrad import PCGradState, pcgrad
from mtl_jax.optim._per_task import per_task
from mtl_jax.optim._random_grouping import RandomGroupingState, random_grouping
from mtl_jax.optim._scale_where import scale_where
from mtl_jax.optim._sequential import SequentialOptimizer
from mtl_jax.optim._task_gradients import TaskGradients, task_gradients
from mtl_jax.optim._weighted import LossWeighting, WeightedState, weighted
from mtl_jax.optim._weighting import scale_by_task, weighted_sum

__all__ = [
    "ByStepState",
    "GradNormState",
    "LossWeighting",
    "PCGradState",
    "RandomGroupingState",
    "SequentialOptimizer",
    "TaskGradients",
    "WeightedState",
    "alternating",
    "by_step",
    "choose",
    "gradnorm",
    "gradnorm_weighting",
    "independent",
    "interference",
    "pcgrad",
    "per_task",
    "random_grouping",
    "scale_by_task",
    "scale_where",
    "task_gradients",
    "weighted",
    "weighted_sum",
]
