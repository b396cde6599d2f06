"""The benchmarks' results as Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Columns that describe the setting. Those of one value for all rows are told once.
SETTING = {
    "encoder": lambda row: f"{row['encoder']} x {row['width']:g}",
    "pixels": lambda row: str(row["image_size"]),
    "batch": lambda row: str(row["batch_size"]),
    "dtype": lambda row: row["dtype"],
    "remat": lambda row: "yes" if row["remat"] else "no",
    "devices": lambda row: str(row["devices"]),
    "steps a call": lambda row: str(row["steps_per_dispatch"]),
    "images on": lambda row: row["memory"],
}
_COLUMNS = {
    "#P": lambda row: f"{row['parameters']:,}",
    "compile s": lambda row: f"{row['compile_seconds']:.1f}",
    "step s (quartiles)": lambda row: "{:.3f} ({:.3f}-{:.3f})".format(
        row["step_seconds"], *row["step_seconds_quartiles"]
    ),
    "images/s": lambda row: f"{row['images_per_second']:.1f}",
    "over vanilla": lambda row: or_dash(row["time_over_vanilla"], "{:.2f}"),
    "floor": lambda row: f"{row['floor_over_vanilla']:.2f}",
    "GFLOP": lambda row: f"{row['formula_flops'] / 1e9:.4g}",
    "XLA's": lambda row: or_dash(row["xla_flops"], "{:.4g}", 1e9),
    "GFLOP/s": lambda row: f"{row['flops_per_second'] / 1e9:.0f}",
    "of matmul": lambda row: f"{row['share_of_matmul']:.0%}",
    "memory MB": lambda row: or_dash(row["memory_bytes"], "{:.0f}", 1e6),
    "input (from files)": lambda row: (
        "{from_memory:.2g} ({from_files:.2g})".format(**row["input"])
        if row["input"]
        else "-"
    ),
}


def or_dash(value: float | None, form: str, unit: float = 1) -> str:
    """Formats a number in a unit, or a dash for None."""
    return "-" if value is None else form.format(value / unit)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Formats the results as Markdown."""
    peak = max(row["device_peak_bytes"] or 0 for row in results)
    lines = [markdown(results, _COLUMNS)]
    if peak:
        lines.append(f"The device says: at most {peak / 1e9:.2f} GB in use.")
    return "\n\n".join(lines)


def markdown(
    rows: Sequence[dict[str, Any]],
    columns: Mapping[str, Callable[[dict[str, Any]], str]],
) -> str:
    """Formats rows as a Markdown table below what all of them have in common."""
    common = []
    varied: dict[str, Callable[[dict[str, Any]], str]] = {
        "method": lambda row: row["method"]
    }
    for name, text in SETTING.items():
        values = {text(row) for row in rows}
        if len(values) == 1:
            common.append(f"{name} {values.pop()}")
        else:
            varied[name] = text
    varied |= columns
    lines = [", ".join(common), ""] if common else []
    lines.append("| " + " | ".join(varied) + " |")
    lines.append("|---" * len(varied) + "|")
    for row in rows:
        lines.append("| " + " | ".join(text(row) for text in varied.values()) + " |")
    return "\n".join(lines)
