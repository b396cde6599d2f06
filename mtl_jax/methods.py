"""Registers the methods, which turn the losses of several tasks into steps.

A method is one `Method` in `METHODS`; its optimizer is one file of `mtl_jax.optim`. Its
fields are part of `config.method`. `register` adds a method.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.experimental import aggregating

from mtl_jax import optim

Optimizer = optim.SequentialOptimizer | optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a method in `config.method`.

    Attributes:
      default: default of the field.
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
    return {k: f for method in METHODS.values() for k, f in method.fields.items()}


register(Method("single", "STL"))
register(
    Method("independent", "MTL-IO", lambda s: optim.independent(s.tx, s.num_tasks))
)
register(Method("alternating", "Alternating", lambda s: optim.alternating(s.tx)))
# All tasks form one group, so that the sum of their losses has one backward pass.
register(
    Method("vanilla", "Vanilla MTL", lambda s: optim.random_grouping(s.tx, 1, s.key))
)
register(
    Method(
        "gradnorm",
        "GradNorm",
        lambda s: optim.weighted(
            optim.gradnorm_weighting(
                s.num_tasks,
                s.fields["gradnorm_alpha"],
                s.fields["gradnorm_learning_rate"],
                shared=lambda path: path == s.last_shared,
            ),
            s.tx,
        ),
        {
            "gradnorm_alpha": Field(1.5, 0, 100),
            "gradnorm_learning_rate": Field(0.025, 1e-12, 1e6),
        },
    )
)
register(Method("pcgrad", "PCGrad", lambda s: optax.chain(optim.pcgrad(s.key), s.tx)))
register(Method("mgda", "MGDA", lambda s: optax.chain(optim.mgda(), s.tx)))
register(
    Method(
        "cagrad",
        "CAGrad",
        lambda s: optax.chain(optim.cagrad(s.fields["cagrad_c"]), s.tx),
        {"cagrad_c": Field(0.5, 0, 100)},
    )
)
register(
    Method(
        "nash_mtl",
        "Nash-MTL",
        lambda s: optax.chain(
            optim.nash_mtl(
                s.num_tasks,
                s.fields["nash_mtl_max_norm"],
                s.fields["nash_mtl_update_weights_every"],
            ),
            s.tx,
        ),
        {
            "nash_mtl_max_norm": Field(1.0, 0),  # 0: no limit
            "nash_mtl_update_weights_every": Field(1, 1),  # steps
        },
    )
)
register(
    Method(
        "moco",
        "MoCo",
        lambda s: optax.chain(
            optim.moco(
                s.num_tasks,
                s.fields["moco_beta"],
                s.fields["moco_gamma"],
                s.fields["moco_rho"],
            ),
            s.tx,
        ),
        {
            "moco_beta": Field(0.5, 1e-12, 1),
            "moco_gamma": Field(0.1, 1e-12, 1e6),
            "moco_rho": Field(0.0, 0, 1e6),
        },
    )
)
register(
    Method(
        "fairgrad",
        "FairGrad",
        lambda s: optax.chain(optim.fairgrad(s.fields["fairgrad_alpha"]), s.tx),
        {"fairgrad_alpha": Field(1.0, 0.01, 100)},
    )
)
register(Method("upgrad", "UPGrad", lambda s: optax.chain(optim.upgrad(), s.tx)))
register(Method("dualproj", "DualProj", lambda s: optax.chain(optim.dualproj(), s.tx)))
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


# Aggregators of which `cr_mogm` can smooth the weights, by name.
_WEIGHTED: dict[str, Callable[[Setting], aggregating.Aggregator]] = {
    "mgda": lambda s: optim.mgda(),
    "cagrad": lambda s: optim.cagrad(s.fields["cagrad_c"]),
    "pcgrad": lambda s: optim.pcgrad(s.key),
    "aligned_mtl": lambda s: optim.aligned_mtl(
        scale_mode=s.fields["aligned_mtl_scale_mode"]
    ),
    "conflict_free": lambda s: optim.conflict_free(),
    "excess_mtl": lambda s: optim.excess_mtl(
        s.num_tasks, s.fields["robust_step_size"], s.fields["n_warmup_steps"]
    ),
    "gradvac": lambda s: optim.gradvac(s.num_tasks, s.key, s.fields["gradvac_beta"]),
    "imtl_g": lambda s: optim.imtl_g(),
    "krum": lambda s: optim.krum(s.fields["n_byzantine"], s.fields["n_selected"]),
    "pcd": lambda s: optim.pcd(
        s.num_tasks, s.fields["pcd_tau"], s.fields["pcd_beta"], s.fields["pcd_eps"]
    ),
    "random_weighting": lambda s: optim.random_weighting(s.key),
}


def _register_aggregator(
    name: str,
    heading: str,
    create: Callable[[Setting], aggregating.Aggregator] | None = None,
    fields: Mapping[str, Field] | None = None,
    fewest_tasks: Callable[[Mapping[str, Any]], int] = lambda fields: 1,
) -> None:
    """Registers an aggregator, by default that of `_WEIGHTED`, with `tx` after it."""
    first = create or _WEIGHTED[name]
    register(
        Method(
            name,
            heading,
            lambda s: optax.chain(first(s), s.tx),
            fields or {},
            fewest_tasks,
        )
    )


_register_aggregator("imtl_g", "IMTL-G")
_register_aggregator(
    "aligned_mtl",
    "Aligned-MTL",
    fields={"aligned_mtl_scale_mode": Field("min", choices=("min", "median", "rmse"))},
)
_register_aggregator("conflict_free", "ConFIG")
_register_aggregator("gradvac", "GradVac", fields={"gradvac_beta": Field(0.5, 0, 1)})
_register_aggregator(
    "cr_mogm",
    "CR-MOGM",
    lambda s: optim.cr_mogm(
        _WEIGHTED[s.fields["smoothed"]](s), s.num_tasks, s.fields["cr_mogm_alpha"]
    ),
    {
        # The method whose weights it smooths.
        "smoothed": Field("pcgrad", choices=tuple(_WEIGHTED)),
        "cr_mogm_alpha": Field(0.9, 0, 1),
    },
)
# The first of config.tasks is the primary one.
_register_aggregator(
    "pcd",
    "PCD",
    fields={
        "pcd_tau": Field(0.02, 0, 1),
        "pcd_beta": Field(0.999, 0, 0.999999),
        "pcd_eps": Field(1e-8, 0),
    },
)
_register_aggregator(
    "krum",
    "Krum",
    fields={"n_byzantine": Field(1, 0), "n_selected": Field(1, 1)},
    fewest_tasks=lambda fields: max(fields["n_byzantine"] + 3, fields["n_selected"]),
)
_register_aggregator("random_weighting", "RGW")
_register_aggregator(
    "graddrop",
    "GradDrop",
    lambda s: optim.graddrop(
        s.key, leak=jnp.full(s.num_tasks, s.fields["graddrop_leak"])
    ),
    # Of every task.
    {"graddrop_leak": Field(0.0, 0, 1)},
)
_register_aggregator(
    "trimmed_mean",
    "Trimmed mean",
    lambda s: optim.trimmed_mean(s.fields["trim_number"]),
    {"trim_number": Field(1, 0)},
    lambda fields: 2 * fields["trim_number"] + 1,
)
_register_aggregator(
    "excess_mtl",
    "ExcessMTL",
    fields={"robust_step_size": Field(1.0, 0), "n_warmup_steps": Field(0, 0)},
)
_register_aggregator(
    "db_mtl",
    "DB-MTL",
    lambda s: optim.db_mtl(
        s.num_tasks, s.fields["db_mtl_beta"], s.fields["db_mtl_beta_sigma"]
    ),
    {"db_mtl_beta": Field(0.9, 0, 1), "db_mtl_beta_sigma": Field(0.0, 0)},
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
