"""Metrics as a table to read in a terminal."""

from collections.abc import Mapping
from typing import Any

_ROWS = (
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


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """The contents of a `metrics.json`, a line for each metric with its image count."""
    title = (
        f"{metrics['dataset']}, split {metrics['split']}, {metrics['resolution']} "
        f"resolution, checkpoint {metrics['checkpoint']}"
    )
    lines = [title, "-" * len(title)]
    for label, name, form in _ROWS:
        value, count = metrics[name], metrics["num_images"][name]
        if value is not None:
            text = form.format(value)
        else:
            # Without a label or without such a task there is nothing to average.
            text = "one class only" if count else "-"
        lines.append(f"{label:33}{text:>14}  n = {count}")
    lines.append(f"{'parameters':33}{metrics['num_parameters']:14,}")
    # Of a network trained by another program that is not known.
    seconds = metrics["seconds_per_step"]
    text = "-" if seconds is None else f"{seconds:.3f}"
    lines.append(f"{'seconds per training step':33}{text:>14}")
    return "\n".join(lines)
