"""Formats data sets, and the metrics of an evaluation, for the terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax import metrics
from mtl_jax.inference.calibration import FEW, Calibration

# Values of a kind that a table has rows for; the others share one.
_MOST_VALUES = 6


def tally_text(found: Mapping[str, Mapping[str, Counter[str]]]) -> str:
    """Formats `pipeline.tally`: a column for each split, with few values of a kind."""
    lines = [f"{'':33}" + "".join(f"{split:>12}" for split in found)]
    for kind, first in next(iter(found.values())).items():
        total = sum((counts[kind] for counts in found.values()), Counter())
        # A data set of one source has no name for it.
        values = [value for value, _ in total.most_common() if value]
        rows = {f"{kind} {value}": [value] for value in values[:_MOST_VALUES]}
        if kind == "labels":
            # Those that no photograph has are told too.
            rows = {value: [value] for value in first}
        elif others := values[_MOST_VALUES:]:
            rows[f"{len(others)} others of {kind}"] = others
        for name, members in rows.items():
            cells = (sum(c[kind][v] for v in members) for c in found.values())
            lines.append(f"{name:33}" + "".join(f"{cell:12}" for cell in cells))
    return "\n".join(lines)


def metrics_text(found: Mapping[str, Any]) -> str:
    """Formats `metrics.json`: one line per metric, with number of images and interval.

    Several sources stand in columns of a second table, without what none of them has.
    Their intervals stand below the values.
    """
    title = (
        f"{found['dataset']}, split {found['split']}, {found['resolution']} "
        f"resolution, checkpoint {found['checkpoint']}"
    )
    lines = [title, "-" * len(title)]
    # Shares and ratios stand above distances.
    shown = sorted(
        metrics.at("terminal").values(), key=lambda m: m.digits, reverse=True
    )
    for metric in shown:
        value, count = found[metric.name], found["num_images"][metric.name]
        text = _text(metric, found)
        if value is None and count:
            text = "one class only"
        line = f"{metric.title or metric.heading:33}{text:>14}  n = {count}"
        if interval := _interval(metric, found):
            line = f"{line:56}  95 %: {interval}"
        lines.append(line)
    lines.append(f"{'parameters':33}{found['num_parameters']:14,}")
    # Weights that another program trained come without their seconds.
    seconds = found["seconds_per_step"]
    text = "-" if seconds is None else f"{seconds:.3f}"
    lines.append(f"{'seconds per training step':33}{text:>14}")
    if "calibration" in found:
        lines += ["", *_calibrated(found)]
    if "by_source" in found:
        lines += ["", *_by_source(shown, found["by_source"])]
    return "\n".join(lines)


def _calibrated(found: Mapping[str, Any]) -> list[str]:
    """Lines on the operating point, and on errors after and before calibration."""
    calibration = found["calibration"]
    before = calibration["uncalibrated"]
    rests_on = f"{calibration['num_images']} photographs"
    lines = [f"calibrated on {rests_on}, {calibration['num_glaucoma']} with glaucoma"]
    for name, metric in metrics.every().items():
        if before.get(name) is not None:
            text = _text(metric, found)
            was = f"{before[name]:.{metric.digits}f}"
            lines.append(f"{metric.title:33}{text:>14}  uncalibrated {was}")
    lines.append(f"{'threshold of the diagnosis':33}{calibration['threshold']:14.3f}")
    for name in ("sensitivity", "specificity"):
        text = _text(metrics.every()[name], found)
        lines.append(f"{f'{name} there':33}{text:>14}")
    return lines


def calibration_text(found: Calibration) -> str:
    """Formats what was fitted, and the number of photographs that it rests on."""
    rows: dict[str, float | None] = {
        "temperature, classifier": found.temperature_fc,
        "temperature, vCDR": found.temperature_vcdr,
        "weight of the classifier": found.weight_fc,
        "temperature, joined": found.temperature,
        "threshold of the diagnosis": found.threshold,
        "sensitivity there": found.sensitivity,
        "specificity there": found.specificity,
    }
    if None in (found.temperature_fc, found.temperature_vcdr):
        # Only one probability: there is nothing to weigh.
        del rows["weight of the classifier"]
    few = found.num_glaucoma, found.num_images - found.num_glaucoma
    lines = [
        f"calibrated on {found.num_images} photographs, {few[0]} with glaucoma",
        *(f"{name:33}{x:14.3f}" for name, x in rows.items() if x is not None),
    ]
    if min(few) < FEW:
        lines.append(
            f"Fewer than {FEW} photographs of one class: other photographs would give "
            "quite different numbers."
        )
    return "\n".join(lines)


def _by_source(
    shown: Sequence[metrics.Metric], found: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A line per metric, with a column for each source."""
    width = max(16, *(len(name) + 2 for name in found))
    lines = [f"{'by source':33}" + "".join(f"{name:>{width}}" for name in found)]
    for metric in shown:
        texts = [_text(metric, values) for values in found.values()]
        if set(texts) != {"-"}:
            line = f"{metric.title or metric.heading:33}"
            lines.append(line + "".join(f"{text:>{width}}" for text in texts))
            texts = [_interval(metric, values) for values in found.values()]
            if any(texts):
                line = f"{'  95 %':33}"
                lines.append(line + "".join(f"{text:>{width}}" for text in texts))
    return lines


def _interval(metric: metrics.Metric, found: Mapping[str, Any]) -> str:
    ends = found.get("intervals", {}).get(metric.name, ())
    return " to ".join(f"{end:.{metric.digits}f}" for end in ends)


def _text(metric: metrics.Metric, found: Mapping[str, Any]) -> str:
    # No value: the images lack the label or a class, or the network lacks the task.
    value = found[metric.name]
    return "-" if value is None else f"{value:.{metric.digits}f}"
