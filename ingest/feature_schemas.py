"""The tables that `features/` fills: windows turned into columns, and what became of every series on the way.

A *variant* is a feature set, its version, and how the windows were cut; its name is that of its folder below
``features/``, since every variant has columns of its own. ``features/VARIANT/cluster=NAME/part-*.parquet`` is a table
like any other to whoever reads one variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import polars as pl

from ingest.table_schema import TIME, TableSchema, columns_of

CONTEXT_MARGIN_S: Final = 300.0
"""So far before and after a window its context is looked for; nodes are read every five minutes."""

FEATURES = TableSchema(
    name="features",
    key=("variant", "job_id", "node", "gpu_index", "window_start"),
    doc=(
        "One window of one GPU's samples in numbers; beside these columns those of its feature set. A feature that has "
        "no value is null: where readings were missing, which reason says (no_reading: the channel had none in the "
        "window; missing_reading: it lacked some, and some definitions cannot do without), or since it is undefined "
        "for such values, as the autocorrelation of a constant is. A window holds the first so many readings of its "
        "window_s; samples_per_s is how fast these were read, so they span less of it where that is above the rate "
        "asked for (null: all at one instant, or made before this was noted)."
    ),
    columns=columns_of(
        variant=pl.String,
        job_id=pl.Int64,
        node=pl.String,
        gpu_index=pl.Int16,
        window_start=TIME,
        window_s=pl.Float64,
        place=pl.String,
        samples_per_s=pl.Float64,
        set=pl.String,
        set_version=pl.Int32,
        reason=pl.String,
    ),
    plain=("job_id", "window_start"),
    never_null=("variant", "job_id", "node", "gpu_index", "window_start"),
)

FEATURE_SERIES = TableSchema(
    name="feature_series",
    key=("variant", "job_id", "node", "gpu_index"),
    doc=(
        "One GPU of one job, and what became of it in a variant of `features`: how many windows it gave, how many were "
        "refused, and why it gave none, or the first was refused (shorter_than_window, too_few_samples, gap, "
        "samples_dropped: the follower dropped some or all for their age, and samples counts what is left). "
        "has_context: its set looks at CPU and node samples around the windows too."
    ),
    columns=columns_of(
        variant=pl.String,
        set=pl.String,
        set_version=pl.Int32,
        window_s=pl.Float64,
        place=pl.String,
        job_id=pl.Int64,
        node=pl.String,
        gpu_index=pl.Int16,
        first_time=TIME,
        last_time=TIME,
        duration_s=pl.Float64,
        samples=pl.Int64,
        windows=pl.Int64,
        windows_refused=pl.Int64,
        reason=pl.String,
        has_context=pl.Boolean,
    ),
    plain=("job_id", "first_time", "last_time"),
    never_null=("variant", "job_id", "node", "gpu_index"),
)


def feature_schema(columns: Mapping[str, pl.DataType]) -> TableSchema:
    """Return the schema of one variant of `FEATURES`: its fixed columns, then a set's own.

    Raises
    ------
    ValueError
        If the set calls a column as the table calls one.
    """
    if taken := [name for name in columns if name in FEATURES.columns]:
        raise ValueError(f"a feature is called {taken[0]!r}, which is a column of every feature table; rename it")
    return replace(FEATURES, columns={**FEATURES.columns, **columns}, plain=(*FEATURES.plain, *columns))


def features_in(frame: pl.DataFrame) -> dict[str, pl.DataType]:
    """Return the columns of a variant that are its set's own, with their types."""
    return {name: dtype for name, dtype in frame.schema.items() if name not in FEATURES.columns}


def variant_of(file: str) -> str:
    """Return the variant that a part of ``features`` is of, by its name below the lake's root.

    >>> variant_of("features/statistical-v2-60s-middle/cluster=one/part-000002-00000.parquet")
    'statistical-v2-60s-middle'
    """
    return file.split("/")[1]
