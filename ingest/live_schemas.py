"""The tables that only the collectors fill: what happened to them, and the GPUs that they found."""

from __future__ import annotations

import polars as pl

from ingest.table_schema import TIME, TableSchema, columns_of

COLLECTOR_EVENTS = TableSchema(
    name="collector_events",
    key=("node", "time", "collector", "event", "detail"),
    doc=(
        "What happened to a collector, or to the follower that feeds the lake: start, stop, late (a tick over 10 ms "
        "after it was due; seconds), missed (count ticks; seconds of gap), sensor_lost, sensor_back, clock_step "
        "(seconds that the wall clock leapt), error, cost (CPU seconds of the last minute, count ticks, detail "
        "resident MiB), and lag (seconds between the newest sample in the lake and now, count rows taken). What was "
        "said at once has its reason code first in detail (gpu_lost, no_permission, ...)."
    ),
    columns=columns_of(
        node=pl.String,
        time=TIME,
        collector=pl.String,
        event=pl.String,
        count=pl.Int64,
        seconds=pl.Float64,
        detail=pl.String,
    ),
    plain=("time",),
)

DEVICE_INVENTORY = TableSchema(
    name="device_inventory",
    key=("node", "gpu_index", "time"),
    doc="The GPUs of a node as a collector found them, at its start and whenever something changed.",
    columns=columns_of(
        node=pl.String,
        gpu_index=pl.Int16,
        time=TIME,
        uuid=pl.String,
        gpu_name=pl.String,
        memory_mib=pl.UInt32,
        limit_w=pl.Float32,
        limit_default_w=pl.Float32,
        limit_min_w=pl.Float32,
        limit_max_w=pl.Float32,
        mig_mode=pl.Int16,
        driver_version=pl.String,
    ),
)
