"""Reads a trained network from its workdir."""

import copy
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import linen as nn
from flax.errors import FlaxError

from mtl_jax import configuration, files, metrics, tasks, weights
from mtl_jax.data import folds, pipeline
from mtl_jax.data.field_of_view import Shape
from mtl_jax.errors import UserError, check_access
from mtl_jax.inference import averaging, postprocess, scoring
from mtl_jax.inference.averaging import Batch, Logits, Outputs
from mtl_jax.inference.calibration import Calibration
from mtl_jax.inference.postprocess import PostProcessing
from mtl_jax.inference.vcdr import VcdrClassifier
from mtl_jax.models import unet
from mtl_jax.training import parallel, views
from mtl_jax.training.checkpoints import Absent, Checkpoints
from mtl_jax.training.step import evaluation_step
from mtl_jax.workdirs import _portable
from mtl_jax.workdirs._claim import networks

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# The classifier that was fitted here for an imported network.
_CLASSIFIER = "vcdr_classifier.json"

_around = jax.jit(views.around)


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A trained network with all that evaluation and prediction need.

    Calling it maps a batch in host memory to logits and losses in host memory, on all
    local devices. If the run trained several networks, they form one model here. Those
    of `single` stand side by side. The second network of `two_stage` looks where the
    first one found the optic disc.

    Attributes:
      experiment: objects that the run's config describes. For several networks they are
        the first one's, with a config of all tasks.
      checkpoint: step of the checkpoint, or the steps of several networks.
      metadata: metadata of the checkpoint, see `workdirs.train`.
      image_size: pixels a side of the images it was trained on.
      batch_size: number of images in a batch.
      classifier: classifier on the cup-to-disc ratio, fitted on the training split.
      num_parameters: number of parameters of all networks.
      networks: pairs of a function mapped over the devices, and its variables there.
      parts: what the configs of `networks` describe, in their order.
      averaged: the networks that `outputs` averages; empty for this network.
      flips: the flips that it averages each over, some of `averaging.FLIPS`.
      calibration: calibration of its probabilities; None for none.
      note: why the calibration of the workdir is not used; may be empty.
    """

    experiment: configuration.Experiment
    checkpoint: str
    metadata: dict[str, Any]
    image_size: int
    batch_size: int
    classifier: VcdrClassifier | None
    num_parameters: int
    networks: tuple[tuple[Any, Any], ...]
    parts: tuple[configuration.Experiment, ...] = ()
    averaged: tuple["TrainedNetwork", ...] = ()
    flips: tuple[tuple[int, ...], ...] = averaging.FLIPS[:1]
    calibration: Calibration | None = None
    note: str = ""

    @property
    def config(self) -> configuration.Config:
        """Config of the run."""
        return self.experiment.config

    @property
    def shape(self) -> Shape:
        """What the images it was trained on show of their photographs."""
        return self.metadata["shape"]

    @property
    def post(self) -> PostProcessing:
        """Rules that turn its maps into masks and points."""
        return self.experiment.post

    @property
    def is_flipped(self) -> bool:
        """Whether it averages over flips."""
        return len(self.flips) > 1

    @property
    def num_members(self) -> int:
        """Number of networks and flips that are averaged; 0 for this network."""
        return len(self.averaged) * len(self.flips)

    @property
    def divisions(self) -> set[tuple[str, folds.Fold | None]]:
        """Data set and fold of each network that is averaged, or of this one."""
        return {
            (network.config.data.dataset, network.experiment.fold)
            for network in self.averaged or [self]
        }

    def in_batches_of(self, size: int) -> "TrainedNetwork":
        """Returns the network with another `batch_size`, a multiple of the devices."""
        averaged = tuple(one.in_batches_of(size) for one in self.averaged)
        return dataclasses.replace(self, batch_size=size, averaged=averaged)

    def fingerprint(self) -> str:
        """Identifies the numbers of this network, which is no average.

        An exported network may hold them in half precision. So they are rounded to it,
        and the exported network has the same fingerprint.
        """
        digest = hashlib.sha256()
        for _, variables in self.networks:
            tensors = _portable.flatten(parallel.unreplicate(variables))
            for name in sorted(tensors):
                with np.errstate(over="ignore"):
                    rounded = np.asarray(tensors[name]).astype("<f2")
                digest.update(name.encode() + rounded.tobytes())
        return digest.hexdigest()[:16]

    def __call__(self, batch: Batch) -> tuple[Logits, dict[str, Any]]:
        """Computes logits and losses of any number of images, `batch_size` at a time.

        The program is that of a whole batch. A smaller one is filled with its images
        again, of which nothing more is returned.
        """
        if self.config.view.kind == "crop":
            raise UserError(
                "This network was trained on crops around discs and does not find them "
                "by itself; name the workdir with both stages."
            )
        size = self.batch_size
        found = [
            self._of_batch({key: x[start : start + size] for key, x in batch.items()})
            for start in range(0, max(1, len(batch["image"])), size)
        ]
        return jax.tree.map(lambda *x: np.concatenate(x), *found)

    def _of_batch(self, batch: Batch) -> tuple[Logits, dict[str, Any]]:
        """Computes logits and losses of up to `batch_size` images."""
        count = len(batch["image"])
        logits, losses = {}, {}
        for mapped, variables in self.networks:
            if self.config.method.name == "two_stage" and logits:
                batch = {**batch, "window": self._windows(logits["disc"])}
            whole = {key: _filled(x, self.batch_size) for key, x in batch.items()}
            found = parallel.gather(mapped(variables, parallel.shard(whole)))
            more_logits, more_losses = jax.tree.map(lambda x: x[:count], found)
            logits |= more_logits
            losses |= more_losses
        return logits, losses

    def outputs(self, batch: Batch) -> Outputs:
        """Computes what the members say of a batch, and its mean, or as a call does."""
        if self.averaged:
            apply = averaging.averaged(self.averaged, self.flips, self.post.point)
            return apply(batch)
        return Outputs(*self(batch))

    def _windows(self, logits: np.ndarray) -> np.ndarray:
        """Finds where the second of two stages looks: [B, 3], around the discs."""
        found = [postprocess.segment(one, None, self.post) for one in logits]
        discs = np.array(found, np.uint8).reshape(logits.shape)
        whole = _filled(discs, self.batch_size)
        return np.asarray(_around(whole, self.config.view.margin))


def _filled(values: np.ndarray, size: int) -> np.ndarray:
    """Repeats the values until there are `size`; zeros if there are none."""
    return np.resize(values, (size, *values.shape[1:]))


def load(workdir: pathlib.Path, checkpoint: str = "best") -> TrainedNetwork:
    """Reads the trained network of a workdir.

    Args:
      workdir: workdir of a run, or the folder that one was exported to.
      checkpoint: `best`, `latest` or a step, chosen for each of several networks.

    Raises:
      UserError: if there is no such checkpoint or it cannot be read.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"There is no workdir {workdir}; name one of a trained run.")
    if not _portable.is_portable(workdir):
        folders = networks(workdir)
        if not folders:
            unfinished = Checkpoints(workdir, read_only=True).unfinished()
            raise UserError(
                f"The first checkpoint of {workdir} is being written; wait for it, or "
                "train with --resume if its run has ended."
                if unfinished
                else f"{workdir} holds no checkpoint; name the workdir of a run."
            )
        if missing := _parts(workdir) - {folder.name for folder in folders}:
            raise UserError(
                f"{workdir} does not hold the network {min(missing)} yet; train it "
                "with --resume."
            )
    return _join([network for _, network in members(workdir, checkpoint)])


def members(
    workdir: pathlib.Path, checkpoint: str = "best"
) -> Iterator[tuple[str, TrainedNetwork]]:
    """Reads the networks of a workdir or of an exported folder, one after the other.

    Yields:
      The name of each, which is `network` if there is only one, and the network.

    Raises:
      UserError: if a network cannot be read.
    """
    if _portable.is_portable(workdir):
        for stored in _portable.read(workdir):
            yield stored.name, _load_stored(workdir, stored, checkpoint)
        return
    for folder in networks(workdir):
        name = "network" if folder == workdir else folder.name
        yield name, _load_one(folder, checkpoint)


def _parts(workdir: pathlib.Path) -> set[str]:
    """Names the networks that the method of a workdir's config trains."""
    path = workdir / "config.json"
    if not path.exists():
        return set()
    try:
        config = configuration.from_json(path.read_text(), path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); move it away, since each checkpoint "
            "holds the config too."
        ) from error
    fields = configuration.flatten(config)
    if fields.get("method.name") == "single":
        return {*fields.get("tasks", ())}
    if fields.get("method.name") == "two_stage":
        return {*configuration.STAGES}
    return set()


def load_kind(
    workdir: pathlib.Path, kind: tasks.Kind
) -> tuple[TrainedNetwork, tasks.Task] | None:
    """Reads back the network of a run that has a kind of task, at its best checkpoint.

    Returns:
      The network and its first task of that kind; None if the run has none.

    Raises:
      UserError: if a checkpoint cannot be read.
    """
    for _, network in members(pathlib.Path(workdir)):
        for task in network.experiment.tasks:
            if task.kind == kind:
                return network, task
    return None


def _load_one(folder: pathlib.Path, checkpoint: str) -> TrainedNetwork:
    checkpoints = Checkpoints(folder, read_only=True)
    step = _step_of(checkpoints, folder, checkpoint)
    try:
        metadata = checkpoints.restore_metadata(step)
        experiment = _experiment(metadata["config"], checkpoints.path(step))
        variables = checkpoints.restore_model(step)
    except Absent:
        if checkpoint not in ("best", "latest"):
            raise
        # Its run has just replaced it by a newer one.
        return _load_one(folder, checkpoint)
    if metadata["vcdr_classifier"] is None and (folder / _CLASSIFIER).exists():
        classifier = _read_classifier(folder / _CLASSIFIER)
        metadata = {**metadata, "vcdr_classifier": classifier}
    network = _network(experiment, step, metadata, variables)
    _check_fit(network, f"of the checkpoint {checkpoints.path(step)}")
    return network


def _load_stored(
    folder: pathlib.Path, stored: _portable.Stored, checkpoint: str
) -> TrainedNetwork:
    if checkpoint not in ("best", "latest", str(stored.step)):
        raise UserError(
            f"{folder} has no checkpoint {checkpoint!r}, only {stored.step}; leave out "
            "--checkpoint."
        )
    experiment = _experiment(stored.metadata["config"], folder)
    network = _network(experiment, stored.step, stored.metadata, stored.variables)
    _check_fit(network, f"of {folder}/{stored.name}.safetensors")
    return network


def _check_fit(network: TrainedNetwork, origin: str) -> None:
    """Refuses variables that are not just those of the model.

    It traces what prediction is going to run, which JAX then does not trace again.
    """
    ((mapped, variables),) = network.networks
    batch_size, side = network.batch_size, network.image_size
    batch: Batch = {"image": np.zeros((batch_size, side, side, 3), np.uint8)}
    if network.config.view.kind == "crop":
        batch["window"] = np.zeros((batch_size, 3), np.float32)
    read = set()

    def note(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        found = call(*arguments, **options)
        scope = context.module.scope
        for name, kinds in scope.reservations.items():
            # None is a module's.
            read.update("/".join((kind, *scope.path, name)) for kind in kinds if kind)
        return found

    try:
        with nn.intercept_methods(note):
            jax.eval_shape(mapped, variables, parallel.shard(batch))
        if surplus := _portable.flatten(variables).keys() - read:
            raise ValueError(f"it has no {min(surplus)}")
    except (FlaxError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The tensors {origin} do not fit its config ({reason}); use another "
            "checkpoint or workdir, or export the network again."
        ) from error


def _experiment(text: str, place: pathlib.Path) -> configuration.Experiment:
    """Builds the objects of a stored config."""
    config = configuration.from_json(text)
    try:
        configuration.check(config, is_part=True)
    except UserError as error:
        raise UserError(
            f"{place} is from another version of mtl_jax, or from a program that "
            f"registered more: {error}"
        ) from error
    return configuration.build(config)


def _network(
    experiment: configuration.Experiment,
    step: int,
    metadata: dict[str, Any],
    variables: Any,
) -> TrainedNetwork:
    classifier = metadata["vcdr_classifier"]
    devices = jax.local_device_count()
    microbatch = experiment.config.batch_size // experiment.config.accumulate
    step_function = evaluation_step(experiment.model, experiment.tasks, experiment.view)
    return TrainedNetwork(
        experiment=experiment,
        checkpoint=str(step),
        metadata=metadata,
        image_size=metadata["image_size"],
        batch_size=-(-microbatch // devices) * devices,
        classifier=classifier and VcdrClassifier(**classifier),
        num_parameters=sum(x.size for x in jax.tree.leaves(variables["params"])),
        networks=(
            (parallel.map_evaluation(step_function), parallel.replicate(variables)),
        ),
        parts=(experiment,),
    )


def encoder_of(network: TrainedNetwork) -> weights.EncoderWeights:
    """Returns the encoder of a network, for other runs to start from.

    Raises:
      UserError: if there are several networks.
    """
    if len(network.networks) > 1:
        raise UserError(
            "This workdir holds several networks; name the folder of one of them."
        )
    ((_, variables),) = network.networks
    variables = parallel.unreplicate(variables)
    statistics = variables["batch_stats"]
    mean = statistics.get("input", {}).get("mean", unet.IMAGENET_MEAN)
    model = network.config.model
    return weights.EncoderWeights(
        architecture=model.encoder,
        params=variables["params"]["encoder"],
        batch_stats=statistics.get("encoder", {}),
        input_mean=np.asarray(mean, np.float32),
        norm=model.norm,
        width=model.width,
        source=f"checkpoint {network.checkpoint}",
    )


def _read_classifier(path: pathlib.Path) -> dict[str, float]:
    try:
        return VcdrClassifier(**files.parse_json(path.read_text()))._asdict()
    except (OSError, ValueError, TypeError) as error:
        check_access(path, error)
        raise UserError(
            f"{path} cannot be read ({error}); delete it, and evaluate again."
        ) from error


def fit_missing_classifier(
    network: TrainedNetwork,
    workdir: pathlib.Path,
    builder: "tfds.core.DatasetBuilder",
    fold: folds.Fold | None,
) -> TrainedNetwork:
    """Fits the classifier that an imported network lacks.

    Args:
      network: network that `load` returned.
      workdir: its workdir, which keeps the classifier for later.
      builder: builder of the data set; the classifier is fitted on its training split.
      fold: fold of the split, as for `pipeline.open_split`.

    Returns:
      The network with a classifier; unchanged if it has one or none can be fitted.
    """
    is_missing = network.classifier is None and "imported" in network.metadata
    if not is_missing or "train" not in builder.info.splits:
        return network
    split = pipeline.open_split(builder, "train", fold)
    classifier = scoring.fit_vcdr_classifier(
        split, network.config.evaluation.vcdr_C, network.post
    )
    if classifier is None:
        return network
    path = pathlib.Path(workdir) / _CLASSIFIER
    files.write_json(path, classifier._asdict())
    files.add_to_record(path)
    return dataclasses.replace(network, classifier=classifier)


def _join(members: list[TrainedNetwork]) -> TrainedNetwork:
    """Joins networks for different tasks into one."""
    first, *others = members
    if not others:
        return first
    is_two_stage = any(member.config.view.kind == "crop" for member in members)
    if len({member.image_size for member in members}) > 1:
        raise UserError(
            "The networks of this workdir were trained on images of different sizes; "
            "train them in one run."
        )
    config = copy.deepcopy(first.config)
    config.method.name = "two_stage" if is_two_stage else "single"
    if is_two_stage:
        config.view.kind = ""
    names = {name for member in members for name in member.config.tasks}
    config.tasks = tuple(name for name in tasks.TASKS if name in names)
    seconds = [member.metadata["seconds_per_step"] for member in members]
    # As in the paper's tables, Res34-Unet does not predict glaucoma.
    is_diagnosed = not is_two_stage or metrics.DIAGNOSIS in names
    return dataclasses.replace(
        first,
        experiment=dataclasses.replace(first.experiment, config=config),
        classifier=first.classifier if is_diagnosed else None,
        checkpoint="-".join(member.checkpoint for member in members),
        metadata={
            **first.metadata,
            # One iteration is a step of every network; imported ones took none.
            "seconds_per_step": None if None in seconds else sum(seconds),
        },
        num_parameters=sum(member.num_parameters for member in members),
        networks=tuple(pair for member in members for pair in member.networks),
        parts=tuple(part for member in members for part in member.parts),
    )


def _step_of(checkpoints: Checkpoints, folder: pathlib.Path, checkpoint: str) -> int:
    steps, step = checkpoints.steps(), None
    if checkpoint == "best":
        step = checkpoints.best()
    elif checkpoint == "latest":
        step = checkpoints.latest()
    elif checkpoint in map(str, steps):
        step = int(checkpoint)
    if checkpoint in map(str, checkpoints.unfinished()) and step is None:
        raise UserError(
            f"The checkpoint {checkpoint} of {folder} is being written; wait for it, "
            "or choose best or latest."
        )
    if step is None:
        raise UserError(
            f"{folder} has no checkpoint {checkpoint!r}; choose best, latest or one of"
            f" the steps {', '.join(map(str, steps))}."
        )
    return step
