"""Registers the methods, which turn the losses of several tasks into steps.

A method is one `Method` in `METHODS`; its optimizer is one file of `mtl_jax.optim`. Its
fields are part of `config.method`. `register` adds a method.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

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
    """

    name: str
    heading: str
    create: Callable[[Setting], Optimizer] | None = None
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)


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
