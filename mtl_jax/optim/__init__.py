"""Optimizers for several task losses, for any JAX model.

Joint methods take all task gradients at the same parameters and stack them on a leading
task axis. `weighted_sum`, `pcgrad`, `gradnorm`, `per_task`, `mgda`, `cagrad`, `upgrad`
and all others that see a Gram matrix are an
`optax.experimental.aggregating.Aggregator`: they map updates with a task axis to
updates without it. An aggregator stands first in an `optax.chain`, or between the two
other arguments of `optax.experimental.aggregating.process`:

  optax.chain(optim.pcgrad(key), optax.adam(1e-4))
  aggregating.process(optim.scale_by_task(c), optim.pcgrad(key), optax.adam(1e-4))

`process` passes the extra arguments of `update` to all three. A transformation that
takes none, such as `optax.identity()`, is to be wrapped in
`optax.with_extra_args_support`.

Sequential methods take each gradient where the step before left the parameters. They
are a `SequentialOptimizer`.
"""

from mtl_jax.optim._alternating import alternating
from mtl_jax.optim._by_step import ByStepState, by_step
from mtl_jax.optim._cagrad import cagrad
from mtl_jax.optim._dualproj import dualproj
from mtl_jax.optim._fairgrad import fairgrad
from mtl_jax.optim._from_gram import from_gram
from mtl_jax.optim._gradnorm import GradNormState, gradnorm, gradnorm_weighting
from mtl_jax.optim._independent import independent
from mtl_jax.optim._interference import interference
from mtl_jax.optim._mgda import mgda
from mtl_jax.optim._moco import MoCoState, moco
from mtl_jax.optim._modo import MoDoState, modo
from mtl_jax.optim._nash_mtl import NashMTLState, nash_mtl
from mtl_jax.optim._paths import choose
from mtl_jax.optim._pcgrad import PCGradState, pcgrad
from mtl_jax.optim._per_task import per_task
from mtl_jax.optim._random_grouping import RandomGroupingState, random_grouping
from mtl_jax.optim._sdmgrad import SDMGradState, sdmgrad
from mtl_jax.optim._sequential import SequentialOptimizer
from mtl_jax.optim._task_gradients import TaskGradients, task_gradients
from mtl_jax.optim._upgrad import upgrad
from mtl_jax.optim._weighted import LossWeighting, WeightedState, weighted
from mtl_jax.optim._weighting import scale_by_task, weighted_sum

__all__ = [
    "ByStepState",
    "GradNormState",
    "LossWeighting",
    "MoCoState",
    "MoDoState",
    "NashMTLState",
    "PCGradState",
    "RandomGroupingState",
    "SDMGradState",
    "SequentialOptimizer",
    "TaskGradients",
    "WeightedState",
    "alternating",
    "by_step",
    "cagrad",
    "choose",
    "dualproj",
    "fairgrad",
    "from_gram",
    "gradnorm",
    "gradnorm_weighting",
    "independent",
    "interference",
    "mgda",
    "moco",
    "modo",
    "nash_mtl",
    "pcgrad",
    "per_task",
    "random_grouping",
    "scale_by_task",
    "sdmgrad",
    "task_gradients",
    "upgrad",
    "weighted",
    "weighted_sum",
]
