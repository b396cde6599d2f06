"""Formats the metrics of an evaluation for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax import metrics


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
    if "by_source" in found:
        lines += ["", *_by_source(shown, found["by_source"])]
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
