"""Registers the methods, which turn the losses of several tasks into steps.

A method is one `Method` in `METHODS`; its optimizer is one file of `mtl_jax.optim`. Its
fields are part of `config.method`. `register` adds a method.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from optax.experimental import aggregating

from mtl_jax import optim

Optimizer = optim.SequentialOptimizer | optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a method in `config.method`.

    Attributes:
      default: default of the field; () for numbers of which each task has one.
      low: lowest possible value of a number.
      high: highest possible value of a number.
      choices: all possible values of a field that is not a number.
    """

    default: Any
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Setting:
    """The inputs from which a method makes its optimizer.

    Attributes:
      tx: transformation that takes the steps, such as `optax.adam(1e-4)`.
      num_tasks: number of tasks of the network.
      key: random key of the method.
      last_shared: path of the kernel of the last layer that all tasks share.
      fields: fields of `config.method`, with those of all methods.
    """

    tx: optax.GradientTransformation
    num_tasks: int
    key: jax.Array
    last_shared: str
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of training several tasks.

    Attributes:
      name: its name in `config.method.name`, `--methods` and results.
      heading: its name in tables, figures and pages.
      create: makes the optimizer; None if the method trains several networks, see
        `configuration.part_configs`.
      fields: its own fields in `config.method`, by name.
      fewest_tasks: maps `config.method` to the number of tasks that it needs.
    """

    name: str
    heading: str
    create: Callable[[Setting], Optimizer] | None = None
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    fewest_tasks: Callable[[Mapping[str, Any]], int] = lambda fields: 1


# Tables list the methods in this order.
METHODS: dict[str, Method] = {}

# Fields of several methods.
_SHARED_FIELDS = {
    # How much each task is preferred, a positive number for each; () prefers all alike.
    # For aligned_mtl, upgrad, dualproj, conflict_free, stch, cosmos and pbi, and for
    # cr_mogm around one of these. The other methods have no preferences.
    "preferences": Field(()),
}


def register(method: Method) -> None:
    """Makes a method known to configs, experiments and reports.

    Raises:
      ValueError: if its name, or that of one of its fields, is taken.
    """
    taken = {*METHODS, *fields(), "name"} & {method.name, *method.fields}
    if taken:
        raise ValueError(f"{min(taken)!r} is taken")
    METHODS[method.name] = method


def headings() -> dict[str, str]:
    """Returns the headings of all methods by name, in the order of tables."""
    return {name: method.heading for name, method in METHODS.items()}


def fields() -> dict[str, Field]:
    """Returns the fields of all methods by name."""
    own = {k: f for method in METHODS.values() for k, f in method.fields.items()}
    return _SHARED_FIELDS | own


def default_setting(
    tx: optax.GradientTransformation,
    num_tasks: int,
    key: jax.Array,
    last_shared: str = "",
) -> Setting:
    """Returns a setting whose fields have their defaults; see `Setting`."""
    defaults = {name: field.default for name, field in fields().items()}
    return Setting(tx, num_tasks, key, last_shared, defaults)


def _aggregator(
    name: str,
    heading: str,
    create: Callable[[Setting], aggregating.Aggregator],
    fewest_tasks: Callable[[Mapping[str, Any]], int] = lambda fields: 1,
    **fields: Field,
) -> None:
    """Registers an aggregator, with `tx` after it."""
    AGGREGATORS[name] = create
    register(
        Method(
            name, heading, lambda s: optax.chain(create(s), s.tx), fields, fewest_tasks
        )
    )


def _weighting(
    name: str,
    heading: str,
    create: Callable[[Setting], optim.LossWeighting],
    **fields: Field,
) -> None:
    """Registers a weighting of the losses, at the price of one backward pass."""
    register(Method(name, heading, lambda s: optim.weighted(create(s), s.tx), fields))


def _preferences(setting: Setting) -> tuple[float, ...] | None:
    return tuple(setting.fields["preferences"]) or None


def _all_preferences(setting: Setting) -> tuple[float, ...]:
    return _preferences(setting) or (1 / setting.num_tasks,) * setting.num_tasks


# What makes the aggregators of methods, without `tx`.
AGGREGATORS: dict[str, Callable[[Setting], aggregating.Aggregator]] = {}

register(Method("single", "STL"))
register(
    Method("independent", "MTL-IO", lambda s: optim.independent(s.tx, s.num_tasks))
)
register(Method("alternating", "Alternating", lambda s: optim.alternating(s.tx)))
# All tasks form one group, so that the sum of their losses has one backward pass.
register(
    Method("vanilla", "Vanilla MTL", lambda s: optim.random_grouping(s.tx, 1, s.key))
)
_weighting(
    "gradnorm",
    "GradNorm",
    lambda s: optim.gradnorm_weighting(
        s.num_tasks,
        s.fields["gradnorm_alpha"],
        s.fields["gradnorm_learning_rate"],
        shared=lambda path: path == s.last_shared,
    ),
    gradnorm_alpha=Field(1.5, 0, 100),
    gradnorm_learning_rate=Field(0.025, 1e-12, 1e6),
)
_aggregator("pcgrad", "PCGrad", lambda s: optim.pcgrad(s.key))
register(
    Method("per_task", "Per-task states", lambda s: optim.per_task(s.tx, s.num_tasks))
)
register(
    Method(
        "random_grouping",
        "Random grouping",
        lambda s: optim.random_grouping(
            s.tx,
            s.fields["num_groups"],
            s.key,
            states=s.fields["states"],
            num_tasks=s.num_tasks,
        ),
        {
            "num_groups": Field(2),
            # What has an optimizer state of its own: each place in the order of groups
            # (slot), or each task (task), which costs a forward and backward pass each.
            "states": Field("slot", choices=("slot", "task")),
        },
    )
)

# Weighted sums of the gradients.
_aggregator("mgda", "MGDA", lambda s: optim.mgda())
_aggregator(
    "cagrad",
    "CAGrad",
    lambda s: optim.cagrad(s.fields["cagrad_c"]),
    cagrad_c=Field(0.5, 0, 100),
)
_aggregator("imtl_g", "IMTL-G", lambda s: optim.imtl_g())
_aggregator(
    "gradvac",
    "GradVac",
    lambda s: optim.gradvac(s.num_tasks, s.key, s.fields["gradvac_beta"]),
    gradvac_beta=Field(0.5, 0, 1),
)
_aggregator(
    "nash_mtl",
    "Nash-MTL",
    lambda s: optim.nash_mtl(
        s.num_tasks,
        s.fields["nash_mtl_max_norm"],
        s.fields["nash_mtl_update_weights_every"],
    ),
    nash_mtl_max_norm=Field(1.0, 0),  # 0: no limit
    nash_mtl_update_weights_every=Field(1, 1),  # steps
)
_aggregator(
    "moco",
    "MoCo",
    lambda s: optim.moco(
        s.num_tasks,
        s.fields["moco_beta"],
        s.fields["moco_gamma"],
        s.fields["moco_rho"],
    ),
    moco_beta=Field(0.5, 1e-12, 1),
    moco_gamma=Field(0.1, 1e-12, 1e6),
    moco_rho=Field(0.0, 0, 1e6),
)
_aggregator(
    "aligned_mtl",
    "Aligned-MTL",
    lambda s: optim.aligned_mtl(_preferences(s), s.fields["aligned_mtl_scale_mode"]),
    aligned_mtl_scale_mode=Field("min", choices=("min", "median", "rmse")),
)
_aggregator(
    "fairgrad",
    "FairGrad",
    lambda s: optim.fairgrad(s.fields["fairgrad_alpha"]),
    fairgrad_alpha=Field(1.0, 0.01, 100),
)
_aggregator("upgrad", "UPGrad", lambda s: optim.upgrad(_preferences(s)))
_aggregator("dualproj", "DualProj", lambda s: optim.dualproj(_preferences(s)))
_aggregator("conflict_free", "ConFIG", lambda s: optim.conflict_free(_preferences(s)))
# The first of config.tasks is the primary one.
_aggregator(
    "pcd",
    "PCD",
    lambda s: optim.pcd(
        s.num_tasks, s.fields["pcd_tau"], s.fields["pcd_beta"], s.fields["pcd_eps"]
    ),
    pcd_tau=Field(0.02, 0, 1),
    pcd_beta=Field(0.999, 0, 0.999999),
    pcd_eps=Field(1e-8, 0),
)
_aggregator(
    "krum",
    "Krum",
    lambda s: optim.krum(s.fields["krum_n_byzantine"], s.fields["krum_n_selected"]),
    lambda fields: max(fields["krum_n_byzantine"] + 3, fields["krum_n_selected"]),
    krum_n_byzantine=Field(1, 0),
    krum_n_selected=Field(1, 1),
)
_aggregator(
    "excess_mtl",
    "ExcessMTL",
    lambda s: optim.excess_mtl(
        s.num_tasks,
        s.fields["excess_mtl_robust_step_size"],
        s.fields["excess_mtl_n_warmup_steps"],
    ),
    excess_mtl_robust_step_size=Field(0.01, 0),
    excess_mtl_n_warmup_steps=Field(1, 0),
)
_aggregator("random_weighting", "RGW", lambda s: optim.random_weighting(s.key))
_aggregator(
    "cr_mogm",
    "CR-MOGM",
    lambda s: optim.cr_mogm(
        AGGREGATORS[s.fields["cr_mogm_smoothed"]](s),
        s.num_tasks,
        s.fields["cr_mogm_alpha"],
    ),
    lambda fields: METHODS[fields["cr_mogm_smoothed"]].fewest_tasks(fields),
    # The method whose weights it smooths. MoCo's are weights of what it has tracked.
    cr_mogm_smoothed=Field(
        "pcgrad", choices=tuple(name for name in AGGREGATORS if name != "moco")
    ),
    cr_mogm_alpha=Field(0.9, 0, 1),
)

# Aggregators that go element by element.
_aggregator(
    "graddrop",
    "GradDrop",
    lambda s: optim.graddrop(
        s.key, leak=np.full(s.num_tasks, s.fields["graddrop_leak"], np.float32)
    ),
    # Of every task.
    graddrop_leak=Field(0.0, 0, 1),
)
_aggregator(
    "trimmed_mean",
    "Trimmed mean",
    lambda s: optim.trimmed_mean(s.fields["trimmed_mean_trim_number"]),
    lambda fields: 2 * fields["trimmed_mean_trim_number"] + 1,
    trimmed_mean_trim_number=Field(1, 0),
)
_aggregator(
    "db_mtl",
    "DB-MTL",
    lambda s: optim.db_mtl(
        s.num_tasks, s.fields["db_mtl_beta"], s.fields["db_mtl_beta_sigma"]
    ),
    db_mtl_beta=Field(0.9, 0, 0.999999),
    db_mtl_beta_sigma=Field(0.0, 0),
)

_weighting(
    "uncertainty_weighting",
    "Uncertainty weighting",
    lambda s: optim.uncertainty_weighting(
        s.num_tasks, optax.adam(s.fields["uncertainty_learning_rate"])
    ),
    uncertainty_learning_rate=Field(0.025, 1e-12, 1e6),
)
_weighting(
    "dwa",
    "DWA",
    lambda s: optim.dwa(
        s.num_tasks, s.fields["dwa_temperature"], steps_per_epoch=s.fields["dwa_steps"]
    ),
    dwa_temperature=Field(2.0, 1e-6, 1e6),
    # Steps whose losses are averaged: in the paper, an epoch.
    dwa_steps=Field(50, 1, 10**9),
)
_weighting("geometric_mean", "GLS", lambda s: optim.geometric_mean())
_weighting(
    "imtl_l",
    "IMTL-L",
    lambda s: optim.imtl_l(s.num_tasks, optax.adam(s.fields["imtl_l_learning_rate"])),
    imtl_l_learning_rate=Field(0.025, 1e-12, 1e6),
)
_weighting("random_loss_weighting", "RLW", lambda s: optim.random_loss_weighting(s.key))
_weighting(
    "famo",
    "FAMO",
    lambda s: optim.famo(
        s.num_tasks,
        learning_rate=s.fields["famo_learning_rate"],
        weight_decay=s.fields["famo_weight_decay"],
    ),
    famo_learning_rate=Field(0.025, 1e-12, 1e6),
    famo_weight_decay=Field(1e-3, 0, 1e6),
)
_weighting(
    "stch",
    "STCH",
    lambda s: optim.stch(s.fields["stch_mu"], _preferences(s)),
    stch_mu=Field(0.1, 1e-6, 1e6),
)
_weighting(
    "cosmos",
    "COSMOS",
    lambda s: optim.cosmos(s.fields["cosmos_lambda"], _all_preferences(s)),
    cosmos_lambda=Field(1.0, 0, 1e6),
)
_weighting(
    "pbi",
    "PBI",
    lambda s: optim.pbi(s.fields["pbi_theta"], _all_preferences(s)),
    pbi_theta=Field(5.0, 0, 1e6),
)

# It finds the optic disc on the whole image, then disc and cup in a crop around it. The
# classifications join the second stage, and the localisations the first.
register(
    Method(
        "two_stage",
        "Res34-Unet",
        fields={
            # Folder of ResNet-34 weights for an experiment whose model.encoder is
            # another. There model.pretrained is for the other methods.
            "two_stage_pretrained": Field(""),
            # Trains each of the two networks.
            "stage_method": Field("vanilla", choices=("vanilla", "independent")),
        },
    )
)
