"""Formats the metrics of an evaluation for the terminal."""

from collections.abc import Mapping
from typing import Any

from mtl_jax import metrics


def metrics_text(found: Mapping[str, Any]) -> str:
    """Formats `metrics.json`: one line per metric, with its number of images."""
    title = (
        f"{found['dataset']}, split {found['split']}, {found['resolution']} "
        f"resolution, checkpoint {found['checkpoint']}"
    )
    lines = [title, "-" * len(title)]
    shown = metrics.at("terminal").values()
    # Shares and ratios stand above distances.
    for metric in sorted(shown, key=lambda m: m.digits, reverse=True):
        value, count = found[metric.name], found["num_images"][metric.name]
        if value is not None:
            text = f"{value:.{metric.digits}f}"
        else:
            # No count: the images lack the label, or the network lacks the task.
            text = "one class only" if count else "-"
        lines.append(f"{metric.title or metric.heading:33}{text:>14}  n = {count}")
    lines.append(f"{'parameters':33}{found['num_parameters']:14,}")
    # Weights that another program trained come without their seconds.
    seconds = found["seconds_per_step"]
    text = "-" if seconds is None else f"{seconds:.3f}"
    lines.append(f"{'seconds per training step':33}{text:>14}")
    return "\n".join(lines)
