"""Writes a table of predictions as Parquet, a part at a time."""

import itertools
import pathlib
from collections.abc import Sequence

from mtl_jax import metrics
from mtl_jax.reporting import summary

# Rows that are in memory together.
_ROWS = 10_000
_TEXTS = ("image", "file", "quality", "overlay")
_WHOLE = (metrics.DIAGNOSIS, "width", "height")


def write(table: pathlib.Path, columns: Sequence[str], path: pathlib.Path) -> None:
    """Converts `predictions.csv`; empty cells become nulls.

    Args:
      table: path of the CSV.
      columns: its columns.
      path: path of the Parquet file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {name: _kind(name) for name in columns}
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, arrow[kind]) for name, kind in kinds.items()])
    rows = summary.rows(table)
    with parquet.ParquetWriter(path, schema) as writer:
        while some := list(itertools.islice(rows, _ROWS)):
            values = [
                {name: kind(row[name]) for name, kind in kinds.items() if row[name]}
                for row in some
            ]
            writer.write_table(pa.Table.from_pylist(values, schema))


def _kind(column: str) -> type[str] | type[int] | type[float]:
    if column in _TEXTS or column.endswith("mask"):
        return str
    if column in _WHOLE or column.endswith(("_height", "_area")):
        return int
    return float
