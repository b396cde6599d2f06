"""Writes a trained network as one function of JAX, from photographs to probabilities.

The function is what `predict` does between the photograph that is brought to the
network's size and the numbers that it reports: flips and averages, both stages, masks,
points, the cup-to-disc ratio, the calibration. It says of an image of the network's
size what `predict` says of it.

A probability is a pair here, of the thing and of its contrary: float32 cannot hold
numbers near one well, and logits hang on their distance from it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import nn

from mtl_jax import metrics, tasks
from mtl_jax.configuration import Experiment
from mtl_jax.errors import UserError
from mtl_jax.exports import components
from mtl_jax.inference import postprocess
from mtl_jax.inference.averaging import FLIPS
from mtl_jax.inference.calibration import LEAST_PROBABILITY, Calibration
from mtl_jax.inference.postprocess import PostProcessing
from mtl_jax.inference.vcdr import VcdrClassifier
from mtl_jax.metrics import DIAGNOSIS
from mtl_jax.training import parallel, views
from mtl_jax.training.step import evaluation_step
from mtl_jax.workdirs import TrainedNetwork

_DISC, _CUP = "disc", "cup"

Outputs = dict[str, jax.Array]


class _Probability(NamedTuple):
    """The probabilities of a thing and of its contrary, of any shape."""

    yes: jax.Array
    no: jax.Array


def function_of(network: TrainedNetwork) -> Callable[[jax.Array], Outputs]:
    """Makes the function that an export holds.

    Args:
      network: network that `workdirs.load_calibrated` returned.

    Returns:
      A pure function of uint8 images [B, H, W, 3] of the network's size. Its result has
      by name, for every task T of the network:

      - `probability` [B], joined and calibrated, and the `probability_fc` and
        `probability_vcdr` that it is made of, as far as the network has them;
      - `vcdr` [B], the vertical cup-to-disc ratio, NaN if there is no disc;
      - `probability_T` [B] of another classification;
      - `map_T` [B, H, W], probabilities of the pixels, of a segmentation or a point;
      - `mask_T` uint8 [B, H, W], 1 inside, of a segmentation;
      - `point_T` [B, 2], (x, y) in pixels of the image.

      All are float32, except masks.

    Raises:
      UserError: if the network is the second of two stages alone.
    """
    networks = network.averaged or (network,)
    members = [_logits_of(one) for one in networks]
    flips = FLIPS if network.is_flipped else FLIPS[:1]
    post, calibration = network.post, network.calibration

    def apply(images: jax.Array) -> Outputs:
        said = [one for member in members for one in _of_flips(member, flips, images)]
        probabilities = {name: _average(name, said, post) for name in said[0]}
        return _read(probabilities, network.classifier, post, calibration)

    return apply


def _logits_of(network: TrainedNetwork) -> Callable[[jax.Array], Outputs]:
    """What a call of a network computes, as a function of images alone."""
    if network.config.view.kind == "crop":
        raise UserError(
            "This network was trained on crops around discs and does not find them by "
            "itself; name the workdir with both stages."
        )
    is_two_stage = network.config.method.name == "two_stage"
    margin = network.config.view.margin

    def step_of(part: Experiment, variables: Any):
        step = evaluation_step(part.model, part.tasks, part.view)
        own = parallel.unreplicate(variables)
        return lambda batch: step(own, batch)[0]

    pairs = zip(network.parts, network.networks, strict=True)
    steps = [step_of(part, variables) for part, (_, variables) in pairs]

    def apply(images: jax.Array) -> Outputs:
        batch, logits = {"image": images}, {}
        for step in steps:
            if is_two_stage and logits:
                disc = _segment(nn.sigmoid(logits[_DISC]), network.post)
                batch["window"] = views.around(disc, margin)
            logits |= step(batch)
        return logits

    return apply


def _of_flips(
    logits_of: Callable[[jax.Array], Outputs],
    flips: Sequence[tuple[int, ...]],
    images: jax.Array,
) -> list[Outputs]:
    """The logits of flipped images, flipped back; all are one batch."""
    if len(flips) == 1:
        return [logits_of(images)]
    batch = images.shape[0]
    logits = logits_of(jnp.concatenate([jnp.flip(images, axes) for axes in flips]))
    shares = {
        name: values.reshape(len(flips), batch, *values.shape[1:])
        for name, values in logits.items()
    }
    return [
        {
            name: jnp.flip(share[i], axes) if share.ndim > 2 else share[i]
            for name, share in shares.items()
        }
        for i, axes in enumerate(flips)
    ]


def _average(name: str, said: Sequence[Outputs], post: PostProcessing) -> _Probability:
    """See `averaging.average`."""
    logits = jnp.stack([one[name] for one in said])
    if len(said) > 1 and post.point == "map" and _is_point(name):
        mean = _mean_of_shares(nn.sigmoid(logits))
        return _Probability(mean, 1 - mean)
    return _Probability(nn.sigmoid(logits).mean(0), nn.sigmoid(-logits).mean(0))


def _is_point(name: str) -> bool:
    return tasks.TASKS[name].kind == "localisation"


def _mean_of_shares(maps: jax.Array) -> jax.Array:
    """See `averaging`."""
    mass = maps.sum((-2, -1), keepdims=True)
    uniform = 1 / (maps.shape[-2] * maps.shape[-1])
    shares = jnp.where(mass > 0, maps / jnp.where(mass > 0, mass, 1.0), uniform)
    mean = shares.mean(0) * mass.mean(0)
    return mean / jnp.maximum(mean.max((-2, -1), keepdims=True), 1)


def _read(
    probabilities: dict[str, _Probability],
    classifier: VcdrClassifier | None,
    post: PostProcessing,
    calibration: Calibration | None,
) -> Outputs:
    """See `prediction.interpret` and `calibration.calibrated`."""
    found: Outputs = {}
    masks: dict[str, jax.Array] = {}
    for name, probability in probabilities.items():
        kind = tasks.TASKS[name].kind
        if name == DIAGNOSIS:
            continue
        if kind == "classification":
            found[metrics.probability_of(tasks.TASKS[name])] = probability.yes
            continue
        found[f"map_{name}"] = probability.yes
        if kind == "segmentation":
            masks[name] = _segment(probability.yes, post)
        else:
            found[f"point_{name}"] = _centre_of_mass(probability.yes, post.point)
    has_ratio = {_DISC, _CUP} <= probabilities.keys()
    if post.cup == "in_disc" and has_ratio:
        masks[_CUP] = _segment(probabilities[_CUP].yes, post, masks[_DISC])
    found |= {f"mask_{name}": mask.astype(jnp.uint8) for name, mask in masks.items()}
    from_ratio = None
    if has_ratio:
        if post.vcdr == "probabilities":
            found["vcdr"] = _probability_cdr(probabilities)
        else:
            found["vcdr"] = _vertical_cdr(masks[_DISC] | masks[_CUP], masks[_CUP])
        if classifier is not None:
            from_ratio = _from_ratio(classifier, found["vcdr"])
    return found | _diagnosis(probabilities.get(DIAGNOSIS), from_ratio, calibration)


def _diagnosis(
    fc: _Probability | None,
    from_ratio: _Probability | None,
    calibration: Calibration | None,
) -> Outputs:
    """The probabilities of glaucoma by name."""
    weight, temperature = 0.5, None
    if calibration is not None:
        weight, temperature = calibration.weight_fc, calibration.temperature
        fc = _scaled(fc, calibration.temperature_fc)
        from_ratio = _scaled(from_ratio, calibration.temperature_vcdr)
    if fc is None or from_ratio is None:
        joined = from_ratio if fc is None else fc
    else:
        joined = _Probability(
            *(
                weight * a + (1 - weight) * b
                for a, b in zip(fc, from_ratio, strict=True)
            )
        )
    named = {
        "probability_fc": fc,
        "probability_vcdr": from_ratio,
        "probability": _scaled(joined, temperature),
    }
    return {name: value.yes for name, value in named.items() if value is not None}


def _scaled(
    probability: _Probability | None, temperature: float | None
) -> _Probability | None:
    if probability is None or temperature is None:
        return probability
    yes, no = (jnp.log(jnp.maximum(value, LEAST_PROBABILITY)) for value in probability)
    logit = (yes - no) / temperature
    return _Probability(nn.sigmoid(logit), nn.sigmoid(-logit))


def _segment(
    maps: jax.Array, post: PostProcessing, within: jax.Array | None = None
) -> jax.Array:
    """See `postprocess.segment`; bool [B, H, W]."""
    inside = maps >= 0.5
    kept = components.largest(inside, post.connectivity, within)
    if post.empty == "whole":
        return kept | ~inside.any((1, 2), keepdims=True)
    return kept


def _centre_of_mass(maps: jax.Array, of: postprocess.Point) -> jax.Array:
    """See `postprocess.centre_of_mass`; [B, 2]."""
    mass = maps
    if of == "peak":
        peak = components.around_highest(
            maps, maps >= postprocess.PEAK_SHARE * maps.max((1, 2), keepdims=True)
        )
        mass = jnp.where(peak, maps, 0.0)
    total = mass.sum((1, 2))
    is_empty = total == 0

    def centre(axis):
        size = maps.shape[axis]
        middle = (size - 1) / 2
        # Distances from the middle: sums of large numbers are rounded more.
        moment = mass.sum(3 - axis) * (jnp.arange(size, dtype=jnp.float32) - middle)
        return middle + moment.sum(1) / jnp.where(is_empty, 1.0, total)

    return jnp.stack([centre(2), centre(1)], 1)


def _vertical_cdr(disc: jax.Array, cup: jax.Array) -> jax.Array:
    """See `postprocess.vertical_cdr`; NaN if both are empty."""
    disc, cup = (mask.astype(jnp.float32).sum(1).max(1) for mask in (disc, cup))
    return jnp.where(disc > 0, cup / (disc + postprocess.LEAST_HEIGHT), jnp.nan)


def _probability_cdr(probabilities: dict[str, _Probability]) -> jax.Array:
    disc, cup = (probabilities[name].yes.sum(1).max(1) for name in (_DISC, _CUP))
    return cup / (disc + postprocess.LEAST_HEIGHT)


def _from_ratio(classifier: VcdrClassifier, ratio: jax.Array) -> _Probability:
    is_known = ratio == ratio
    logit = classifier.coefficient * jnp.where(is_known, ratio, 0.0)
    logit += classifier.intercept
    prior = classifier.prior
    return _Probability(
        jnp.where(is_known, nn.sigmoid(logit), prior),
        jnp.where(is_known, nn.sigmoid(-logit), 1 - prior),
    )
