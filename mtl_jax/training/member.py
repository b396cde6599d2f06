"""One network in training: its data, its folder, and what is said of it."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mtl_jax import configuration, weights
from mtl_jax.data import pipeline
from mtl_jax.errors import NotFinite, UserError
from mtl_jax.evaluation import scoring
from mtl_jax.training import parallel
from mtl_jax.training import step as steps
from mtl_jax.training.checkpoints import Checkpoints
from mtl_jax.training.metric_log import MetricLog
from mtl_jax.training.state import TrainState
from mtl_jax.training.watch import Watch, check_finite

# From a replicated network and a batch in host memory to what it says of the batch.
Evaluation = Callable[[Any, Any], Any]


class Member:
    """A network of a program; the program's other networks are other runs'.

    Attributes:
      config: of the network.
      epoch_steps: steps of an epoch.
      done: steps of the training that are behind it.
      is_finished: whether these are all.
      state: that the training goes on from; None if it is finished.
      failure: why nothing more is done for this network; None while all is well.
    """

    def __init__(
        self,
        config: configuration.Config,
        workdir: pathlib.Path,
        splits: tuple[pipeline.Table, pipeline.Table | None],
        image_size: int,
        model: nn.Module,
        claims: Sequence[Callable[[], None]],
    ):
        """Claims the network's folder, and reads what is there.

        Args:
          config: of the network.
          workdir: its folder.
          splits: to train on and to validate on; None for no validation.
          image_size: pixels a side of the images.
          model: the network.
          claims: what makes the folder this run's; called when all else has been found
            in order.

        Raises:
          UserError: for an unsuitable data set, pretrained encoder or folder.
        """
        self.config = config
        self.failure: NotFinite | None = None
        self._workdir = workdir
        self._train, self._validation = splits
        self._image_size = image_size
        self._tasks = configuration.create_tasks(config)
        self.epoch_steps = pipeline.steps_per_epoch(self._train, config.batch_size)
        is_begun = Checkpoints(workdir, read_only=True).latest() is not None
        # Before the folder is claimed: weights that do not fit leave no trace.
        pretrained = None if is_begun else load_pretrained(config)
        for claim_folder in claims:
            claim_folder()
        self._checkpoints = Checkpoints(workdir)
        self._batches = pipeline.training_batches(
            self._train, config.batch_size, config.seed
        )
        latest = self._checkpoints.latest()
        self.done = latest or 0
        self.is_finished = self.done >= config.num_epochs * self.epoch_steps
        initial = self._initial(model, pretrained)
        if latest is not None:
            self._check_data(self._checkpoints.restore_metadata(latest))
        self.state: TrainState | None = None
        if self.is_finished:
            # All that anyone wants of it; its optimizer may be of an older version.
            network = {"params": initial.params, "batch_stats": initial.batch_stats}
            self._checkpoints.restore_model(latest, network)
        elif latest is None:
            self.state = initial
        else:
            self.state, _ = self._checkpoints.restore(latest, initial, self._batches)
        # Of the second of two stages, as of both, nothing is said of glaucoma.
        self._classifier = None
        self._post = configuration.create_post_processing(config)
        if config.view.kind != "disc":
            self._classifier = scoring.fit_vcdr_classifier(
                self._train, config.evaluation.vcdr_C, self._post
            )
        self._log: MetricLog | None = None

    def _initial(
        self, model: nn.Module, pretrained: weights.Encoder | None
    ) -> TrainState:
        optimizer = configuration.create_optimizer(self.config, self.epoch_steps)
        key = jax.random.key(self.config.seed)
        state = steps.create_train_state(model, optimizer, key)
        if pretrained is None:
            return state
        params, batch_stats = weights.start_from(
            pretrained, state.params, state.batch_stats
        )
        return state.replace(params=params, batch_stats=batch_stats)

    def _check_data(self, saved: Mapping[str, Any]) -> None:
        """Refuses to go on with other data than the run began with."""
        if saved["num_training_images"] not in (None, len(self._train)):
            raise UserError(
                f"{self._train.name} has {len(self._train)} images, but this run "
                f"began with {saved['num_training_images']}; name another workdir."
            )

    def open(self) -> None:
        """Opens the logs; `close` closes them."""
        silent = not parallel.is_first_process()
        self._log = MetricLog(self._workdir, self.done, silent=silent)

    def close(self) -> None:
        """Closes the logs, if they are open, and waits for what is being saved."""
        if self._log is not None:
            self._log.close()
        self._checkpoints.close()

    def next_batch(self) -> dict[str, np.ndarray]:
        """The next training batch, shared out to the devices."""
        return parallel.shard(next(self._batches))

    def begin_epoch(self, num_runs: int) -> None:
        """Begins to collect metrics; the program trains `num_runs` networks."""
        self._watch = Watch(self._tasks, self._checkpoints, num_runs)

    def add(self, step: int, metrics: steps.Metrics) -> None:
        """Takes the metrics of a step, in host memory."""
        self._watch.add(step, metrics)

    def log(self, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        """Logs values of one step."""
        self._log.write(step, epoch, values)

    def summary(self) -> dict[str, float | None]:
        """Means over the epoch, and speed."""
        return self._watch.summary(self.config.batch_size)

    def validate_and_save(
        self, step: int, epoch: int, state: TrainState, evaluation: Evaluation
    ) -> None:
        """Scores a replicated state, logs it, and saves it.

        Raises:
          NotFinite: if a step has spoilt it.
        """
        saved = parallel.unreplicate(state)
        check_finite(saved, step, self._checkpoints)
        if validation := self._validate(state, evaluation):
            values = {f"validation/{k}": v for k, v in validation.items()}
            self._log.write(step, epoch, values)
        metadata = {
            "config": configuration.to_json(self.config),
            "image_size": self._image_size,
            "num_training_images": len(self._train),
            "vcdr_classifier": self._classifier and self._classifier._asdict(),
            "epoch": epoch,
            "seconds_per_step": self.summary()["train/seconds_per_step"],
            "validation": validation,
        }
        self._checkpoints.save(saved, self._batches, metadata, validation.get("score"))

    def _validate(
        self, state: TrainState, evaluation: Evaluation
    ) -> dict[str, float | None]:
        """Scores of the validation split; nothing without one."""
        if self._validation is None:
            return {}
        config = self.config
        variables = {"params": state.params, "batch_stats": state.batch_stats}

        def outputs(batch):
            return parallel.gather(evaluation(variables, parallel.shard(batch)))

        rows = scoring.score_split(
            outputs,
            self._validation,
            config.batch_size,
            self._classifier,
            post=self._post,
        )
        summary = scoring.summarize(rows)
        del summary["num_images"]
        score = scoring.score_of(summary, config.evaluation.score, self._image_size)
        return {**summary, "score": score}


def load_pretrained(config: configuration.Config) -> weights.Encoder | None:
    """The weights that the encoder starts from; None where it starts from scratch.

    Raises:
      UserError: if there are none in that folder, or they do not fit the network.
    """
    if not config.model.pretrained:
        return None
    encoder = weights.load(pathlib.Path(config.model.pretrained))
    model = config.model
    weights.check_suitable(encoder, model.encoder, model.norm, model.width)
    return encoder
