"""Optimizers for several task losses, for any JAX model.

Joint methods take all task gradients at the same parameters and stack them on a leading
task axis. `weighted_sum`, `pcgrad`, `gradnorm`, `per_task`, the other aggregators and
everything that `from_gram` makes are an `optax.experimental.aggregating.Aggregator`:
they map updates with a task axis to updates without it. An aggregator stands first in
an `optax.chain`, or between the two other arguments of
`optax.experimental.aggregating.process`:

  optax.chain(optim.pcgrad(key), optax.adam(1e-4))
  aggregating.process(optim.scale_by_task(c), optim.pcgrad(key), optax.adam(1e-4))

`process` passes the extra arguments of `update` to all three. A transformation that
takes none, such as `optax.identity()`, is to be wrapped in
`optax.with_extra_args_support`.

Loss weightings turn the losses into weights of the tasks, for one backward pass.
`weighted` makes a `SequentialOptimizer` of a `LossWeighting`.

Sequential methods take each gradient where the step before left the parameters. They
are a `SequentialOptimizer`.
"""

from mtl_jax.optim._aligned_mtl import aligned_mtl
from mtl_jax.optim._alternating import alternating
from mtl_jax.optim._by_step import ByStepState, by_step
from mtl_jax.optim._cagrad import cagrad
from mtl_jax.optim._conflict_free import conflict_free
from mtl_jax.optim._cosmos import cosmos
from mtl_jax.optim._cr_mogm import CRMOGMState, cr_mogm
from mtl_jax.optim._db_mtl import DBMTLState, db_mtl
from mtl_jax.optim._dualproj import dualproj
from mtl_jax.optim._dwa import DWAState, dwa
from mtl_jax.optim._excess_mtl import ExcessMTLState, excess_mtl
from mtl_jax.optim._fairgrad import fairgrad
from mtl_jax.optim._famo import FAMOState, famo
from mtl_jax.optim._from_gram import WeightedAggregator, from_gram
from mtl_jax.optim._geometric_mean import geometric_mean
from mtl_jax.optim._graddrop import GradDropState, graddrop
from mtl_jax.optim._gradnorm import GradNormState, gradnorm, gradnorm_weighting
from mtl_jax.optim._gradvac import GradVacState, gradvac
from mtl_jax.optim._imtl_g import imtl_g
from mtl_jax.optim._imtl_l import IMTLLState, imtl_l
from mtl_jax.optim._independent import independent
from mtl_jax.optim._interference import interference
from mtl_jax.optim._jacobian import Backward, jacobian
from mtl_jax.optim._krum import krum
from mtl_jax.optim._mgda import mgda
from mtl_jax.optim._moco import MoCoState, moco
from mtl_jax.optim._modo import MoDoState, modo
from mtl_jax.optim._nash_mtl import NashMTLState, nash_mtl
from mtl_jax.optim._on_shared import on_shared
from mtl_jax.optim._paths import choose
from mtl_jax.optim._pbi import pbi
from mtl_jax.optim._pcd import PCDState, pcd
from mtl_jax.optim._pcgrad import PCGradState, pcgrad
from mtl_jax.optim._per_task import per_task
from mtl_jax.optim._random_grouping import RandomGroupingState, random_grouping
from mtl_jax.optim._random_loss_weighting import random_loss_weighting
from mtl_jax.optim._random_weighting import RandomWeightingState, random_weighting
from mtl_jax.optim._scalarization import scalarization
from mtl_jax.optim._sdmgrad import SDMGradState, sdmgrad
from mtl_jax.optim._sequential import SequentialOptimizer
from mtl_jax.optim._stch import stch
from mtl_jax.optim._task_gradients import TaskGradients, task_gradients
from mtl_jax.optim._trimmed_mean import trimmed_mean
from mtl_jax.optim._uncertainty_weighting import (
    UncertaintyWeightingState,
    uncertainty_weighting,
)
from mtl_jax.optim._upgrad import upgrad
from mtl_jax.optim._weighted import LossWeighting, WeightedState, weighted
from mtl_jax.optim._weighting import scale_by_task, weighted_sum

__all__ = [
    "Backward",
    "ByStepState",
    "CRMOGMState",
    "DBMTLState",
    "DWAState",
    "ExcessMTLState",
    "FAMOState",
    "GradDropState",
    "GradNormState",
    "GradVacState",
    "IMTLLState",
    "LossWeighting",
    "MoCoState",
    "MoDoState",
    "NashMTLState",
    "PCDState",
    "PCGradState",
    "RandomGroupingState",
    "RandomWeightingState",
    "SDMGradState",
    "SequentialOptimizer",
    "TaskGradients",
    "UncertaintyWeightingState",
    "WeightedAggregator",
    "WeightedState",
    "aligned_mtl",
    "alternating",
    "by_step",
    "cagrad",
    "choose",
    "conflict_free",
    "cosmos",
    "cr_mogm",
    "db_mtl",
    "dualproj",
    "dwa",
    "excess_mtl",
    "fairgrad",
    "famo",
    "from_gram",
    "geometric_mean",
    "graddrop",
    "gradnorm",
    "gradnorm_weighting",
    "gradvac",
    "imtl_g",
    "imtl_l",
    "independent",
    "interference",
    "jacobian",
    "krum",
    "mgda",
    "moco",
    "modo",
    "nash_mtl",
    "on_shared",
    "pbi",
    "pcd",
    "pcgrad",
    "per_task",
    "random_grouping",
    "random_loss_weighting",
    "random_weighting",
    "scalarization",
    "scale_by_task",
    "sdmgrad",
    "stch",
    "task_gradients",
    "trimmed_mean",
    "uncertainty_weighting",
    "upgrad",
    "weighted",
    "weighted_sum",
]
