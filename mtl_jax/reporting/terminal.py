"""Formats the metrics of an evaluation for the terminal."""

from collections.abc import Mapping
from typing import Any

_LINES = (
    ("AUC, averaged", "auc", "{:.3f}"),
    ("AUC, classifier", "auc_fc", "{:.3f}"),
    ("AUC, vCDR", "auc_vcdr", "{:.3f}"),
    ("sensitivity at 85 % specificity", "sensitivity_at_85_specificity", "{:.3f}"),
    ("optic disc Dice", "dice_disc", "{:.3f}"),
    ("optic cup Dice", "dice_cup", "{:.3f}"),
    ("vCDR error", "vcdr_mae", "{:.3f}"),
    ("fovea error, model pixels", "fovea_error", "{:.2f}"),
    ("fovea error, native pixels", "fovea_error_native", "{:.2f}"),
)


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Formats `metrics.json`: one line per metric, with its number of images."""
    title = (
        f"{metrics['dataset']}, split {metrics['split']}, {metrics['resolution']} "
        f"resolution, checkpoint {metrics['checkpoint']}"
    )
    lines = [title, "-" * len(title)]
    for label, name, form in _LINES:
        value, count = metrics[name], metrics["num_images"][name]
        if value is not None:
            text = form.format(value)
        else:
            # No count: the images lack the label, or the network lacks the task.
            text = "one class only" if count else "-"
        lines.append(f"{label:33}{text:>14}  n = {count}")
    lines.append(f"{'parameters':33}{metrics['num_parameters']:14,}")
    # Weights that another program trained come without their seconds.
    seconds = metrics["seconds_per_step"]
    text = "-" if seconds is None else f"{seconds:.3f}"
    lines.append(f"{'seconds per training step':33}{text:>14}")
    return "\n".join(lines)
