"""The training loop: epochs, validation, checkpoints, resuming."""

import contextlib
import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import tqdm

from mtl_jax import configuration
from mtl_jax.data import pipeline
from mtl_jax.errors import NotFinite
from mtl_jax.tasks import Task
from mtl_jax.training import parallel, together
from mtl_jax.training import step as steps
from mtl_jax.training.member import Evaluation, Member
from mtl_jax.training.state import TrainState
from mtl_jax.training.watch import brief
from mtl_jax.training.workdir import claim


def train(
    config: configuration.Config, workdir: pathlib.Path, *, resume: bool = False
) -> None:
    """Trains a network into a workdir.

    Args:
      config: as in `configs/default.py`.
      workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`; of
        a method that trains several networks, a folder with these for each.
      resume: go on from the latest checkpoint of this workdir, if there is one.

    Raises:
      UserError: for an unsuitable config, data set or workdir, and when a loss is not
        finite.
    """
    for failure in train_together([config], [workdir], resume=resume).values():
        raise failure


def train_together(
    configs: Sequence[configuration.Config],
    workdirs: Sequence[pathlib.Path],
    *,
    resume: bool = False,
) -> dict[pathlib.Path, NotFinite]:
    """Trains several runs of one method by one program, each into its own workdir.

    Each comes to what it would come to alone, but for rounding. Runs whose epochs have
    different numbers of steps, or that stand at different steps, take turns.

    Args:
      configs: equal but for the fold, the seed and the learning rate.
      workdirs: of the runs, see `train`.
      resume: see `train`.

    Returns:
      By its workdir, why a run came to an early end: its numbers were not finite. The
      others went on.

    Raises:
      UserError: for an unsuitable config, data set or workdir.
      ValueError: if the configs differ in something else.
    """
    for config in configs:
        configuration.check(config)
        differing = set(configuration.differences(configs[0], config))
        if differing - {"data.fold", "seed", "optimizer.learning_rate"}:
            raise ValueError(
                f"one program cannot serve runs that differ in {differing}"
            )
    parallel.check_batch_size(configs[0].batch_size)
    failures: dict[pathlib.Path, NotFinite] = {}
    runs = [
        (pathlib.Path(workdir), config, configuration.part_configs(config))
        for config, workdir in zip(configs, workdirs, strict=True)
    ]
    # A method of one network has one part, the run itself.
    for number, name in enumerate(runs[0][2] or [""]):
        places = []
        for workdir, config, parts in runs:
            if workdir in failures:
                continue
            claims = []
            # The first part's data and weights are all parts': they are looked at
            # before the run leaves a trace.
            if number == 0:
                claims.append(functools.partial(claim, workdir, config, resume))
            # What is finished is found finished.
            if name:
                claims.append(
                    functools.partial(claim, workdir / name, parts[name], True)
                )
            places.append(_Place(workdir, parts.get(name, config), claims))
        if places:
            failures |= _train_networks(places, name)
    return failures


class _Place(NamedTuple):
    """Where a network of a run is trained, and how.

    Attributes:
      workdir: of the run.
      config: of the network.
      claims: what makes the folder this run's.
    """

    workdir: pathlib.Path
    config: configuration.Config
    claims: Sequence[Callable[[], None]]


def _train_networks(
    places: Sequence[_Place], name: str
) -> dict[pathlib.Path, NotFinite]:
    """Trains one network of each run; says by their workdirs which failed, and why."""
    config = places[0].config
    model = configuration.create_model(config, parallel.AXIS)
    dataset = pipeline.open_dataset(config.data.data_dir, config.data.dataset)
    side = pipeline.image_size(dataset)
    splits = pipeline.open_training_splits(
        dataset,
        [configuration.create_fold(place.config) for place in places],
        config.data.pixel_origin,
    )
    if not config.view.kind:
        train, _ = splits[0]
        configuration.check_image_size(config, side, f"{train.name} has images of")
    members: dict[pathlib.Path, Member] = {}
    programs: dict[tuple[int, int], list[Member]] = {}
    with contextlib.ExitStack() as stack:
        for place, tables in zip(places, splits, strict=True):
            folder = place.workdir / name
            member = Member(place.config, folder, tables, side, model, place.claims)
            stack.callback(member.close)
            members[place.workdir] = member
            if not member.is_finished:
                key = member.epoch_steps, member.done
                programs.setdefault(key, []).append(member)
        for program in programs.values():
            _run_program(program, model)
    return {
        workdir: member.failure
        for workdir, member in members.items()
        if member.failure is not None
    }


def _run_program(members: Sequence[Member], model: nn.Module) -> None:
    """Trains networks that stand at the same step, all at once."""
    lead, num_runs = members[0], len(members)
    train_step = _train_step(members, model)
    log_interference = _interference_log(members, model)
    evaluation = _evaluation(lead.config, model)
    state = parallel.replicate(together.stack([member.state for member in members]))
    for member in members:
        member.state = None
        member.open()
    with _progress(lead, num_runs) as progress:
        for epoch in range(
            lead.done // lead.epoch_steps + 1, lead.config.num_epochs + 1
        ):
            pending = None
            for member in members:
                member.begin_epoch(num_runs)
            last = epoch * lead.epoch_steps
            for step in range(last - lead.epoch_steps + 1, last + 1):
                batches = [member.next_batch() for member in members]
                batch = together.stack(batches, axis=1)
                log_interference(step, epoch, state, batch)
                state, metrics = train_step(state, batch)
                # One step late, so that the next is under way meanwhile.
                _read(members, pending)
                pending = step, metrics
                progress.update()
                if not _going_on(members):
                    return
            _read(members, pending)
            for _, member in _going_on(members):
                summary = member.summary()
                member.log(last, epoch, summary)
                progress.set_postfix(brief(summary))
            if epoch % lead.config.validate_every and epoch < lead.config.num_epochs:
                continue
            for index, member in _going_on(members):
                own = parallel.take(state, index) if num_runs > 1 else state
                with _may_fail(member):
                    member.validate_and_save(last, epoch, own, evaluation)


def _going_on(members: Sequence[Member]) -> list[tuple[int, Member]]:
    """Places and members of which none has failed."""
    return [(i, member) for i, member in enumerate(members) if not member.failure]


@contextlib.contextmanager
def _may_fail(member: Member) -> Iterator[None]:
    """What is not finite ends this run, and no other of its program."""
    try:
        yield
    except NotFinite as failure:
        member.failure = failure


def _read(members: Sequence[Member], pending: tuple[int, Any] | None) -> None:
    """Gives members the metrics of a step, if there is one."""
    if pending is None:
        return
    step, metrics = pending
    metrics = parallel.unreplicate(metrics)
    for index, member in _going_on(members):
        with _may_fail(member):
            member.add(step, together.part(metrics, index, len(members)))


def _progress(lead: Member, num_runs: int) -> tqdm.tqdm:
    return tqdm.tqdm(
        total=lead.config.num_epochs * lead.epoch_steps,
        initial=lead.done,
        desc="training" if num_runs == 1 else f"training {num_runs} runs",
        unit="step",
        disable=not parallel.is_first_process(),
        mininterval=1 if sys.stderr.isatty() else 20,
    )


def _train_step(
    members: Sequence[Member], model: nn.Module
) -> Callable[[TrainState, Any], tuple[TrainState, steps.Metrics]]:
    """The step of all members on all devices."""
    lead = members[0]
    keys = together.stack([configuration.method_key(m.config) for m in members])

    def step(key, state, batch):
        optimizer = configuration.create_optimizer(lead.config, lead.epoch_steps, key)
        tasks = configuration.create_tasks(lead.config)
        one = steps.train_step(model, tasks, optimizer, **_inside(lead.config))
        return one(state, batch)

    every = together.over_runs(step, len(members))
    return parallel.map_step(lambda state, batch: every(keys, state, batch))


def _inside(config: configuration.Config) -> dict[str, Any]:
    """What a step inside a program is told beside network and tasks."""
    return {
        "axis_name": parallel.AXIS,
        "augment": configuration.create_augmentation(config),
    }


def _evaluation(config: configuration.Config, model: nn.Module) -> Evaluation:
    """What a network says of a batch, on all devices."""
    tasks, view = configuration.create_tasks(config), configuration.create_view(config)
    return parallel.map_evaluation(steps.evaluation_step(model, tasks, view))


def _interference_log(
    members: Sequence[Member], model: nn.Module
) -> Callable[[int, int, TrainState, Any], None]:
    """Logs how tasks interfere, at the steps that the config wants it at.

    Returns:
      `(step, epoch, state, batch)`, which does nothing at other steps.
    """
    config = members[0].config
    tasks, every = configuration.create_tasks(config), config.interference_every
    step = steps.interference_step(model, tasks, **_inside(config))
    mapped = parallel.map_evaluation(together.over_runs(step, len(members)))

    def log(step, epoch, state, batch):
        if not every or (step - 1) % every:
            return
        found = parallel.unreplicate(mapped(state, batch))
        for index, member in _going_on(members):
            own = together.part(found, index, len(members))
            member.log(step, epoch, _interference_values(tasks, own))

    return log


def _interference_values(
    tasks: Sequence[Task], found: steps.Metrics
) -> dict[str, float]:
    names = [task.name for task in tasks]
    values = {
        f"interference/norm_{name}": norm
        for name, norm in zip(names, found["norm"], strict=True)
    }
    for i, j in itertools.combinations(range(len(names)), 2):
        name = f"interference/cosine_{names[i]}_{names[j]}"
        values[name] = found["cosine"][i, j]
    return {name: float(value) for name, value in values.items()}
