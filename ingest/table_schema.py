"""What a table of the lake is: its columns and their types, its key, and how it is stored."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

TIME = pl.Datetime("us", "UTC")

SERIES_KEY = ("job_id", "node", "gpu_index")
"""What tells one series of GPU samples from another."""

DEVICE_KEY = ("node", "gpu_index")
"""What tells one GPU from another."""


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One table: column name to polars type in order, its key without ``cluster``, and what the columns mean.

    ``plain`` names the columns that are stored without a dictionary (they seldom change, so compression does as well in
    less time; or they seldom repeat); all others use a dictionary. Chosen by measurement (BENCHMARKS.md) among the
    encodings that all five readers understand. ``delta`` names those that become DELTA_BINARY_PACKED in a part of long
    stretches: a row group then holds one stretch, because fastparquet misreads deltas of over 28 bits.
    ``never_null`` columns are stored as required ones.
    """

    name: str
    key: tuple[str, ...]
    columns: dict[str, pl.DataType]
    doc: str
    delta: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    never_null: tuple[str, ...] = ()

    def empty(self) -> pl.DataFrame:
        """Return a frame of no rows with this table's columns and types."""
        return pl.DataFrame(schema=self.columns)

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return ``frame`` with exactly this table's columns, in order, absent ones null, types cast strictly."""
        have = set(frame.columns)
        return frame.select(
            [
                (pl.col(name).cast(dtype) if name in have else pl.lit(None, dtype=dtype).alias(name))
                for name, dtype in self.columns.items()
            ]
        )


def columns_of(**columns: pl.DataType | type[pl.DataType]) -> dict[str, pl.DataType]:
    """Return column name to type, from types or their classes."""
    return {name: dtype() if isinstance(dtype, type) else dtype for name, dtype in columns.items()}
