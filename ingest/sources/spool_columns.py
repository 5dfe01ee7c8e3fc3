"""The columns of a spool's segments: the dataset's own names, with the keys in columns and not in file names.

The collectors write them (`ingest.collectors.spool.HEADERS`); a file is known by its name, and each occurs once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import polars as pl

from ingest.sources import slurm_log
from ingest.sources.file_kind import Context, FileKind, Finished, epoch_to_time
from ingest.sources.sacct_values import gpus, tres
from ingest.sources.supercloud_columns import (
    CPU_COLUMN_MAP,
    GPU_COLUMN_MAP,
    GPU_OPTIONAL_COLUMN_MAP,
    NODE_COLUMN_MAP,
    SUPERCLOUD_KINDS,
    types_of,
)

GPU_KEY_COLUMN_MAP: Final = {"job_id": "job_id", "node": "node"}

PROCESS_COLUMN_MAP: Final = {"id_job": "job_id", **CPU_COLUMN_MAP}

SPOOL_NODE_COLUMN_MAP: Final = {**NODE_COLUMN_MAP, "NfsOps": "nfs_ops", "NodePowerW": "node_power_w"}

DEVICE_COLUMN_MAP: Final = {
    "time": "time_epoch_s",
    "node": "node",
    "gpu_index": "gpu_index",
    "uuid": "uuid",
    "name": "gpu_name",
    "memory_total_MiB": "memory_mib",
    "power_limit_W": "limit_w",
    "power_limit_default_W": "limit_default_w",
    "power_limit_min_W": "limit_min_w",
    "power_limit_max_W": "limit_max_w",
    "mig_mode": "mig_mode",
    "driver_version": "driver_version",
}

EVENT_COLUMN_MAP: Final = {
    "time": "time_epoch_s",
    "node": "node",
    "collector": "collector",
    "event": "event",
    "count": "count",
    "seconds": "seconds",
    "detail": "detail",
}

_RUN_COLUMNS: Final = (
    *("id_job", "id_user", "nodes_alloc", "nodelist", "cpus_req", "state", "exit_code", "time_submit"),
    *("time_eligible", "time_start", "time_end", "tres_alloc", "job_type"),
)
RUN_COLUMN_MAP: Final = {name: slurm_log.COLUMN_MAP[name] for name in _RUN_COLUMNS}
"""What a labelled run's row in ``jobs/`` has of the scheduler's log."""

_NAMED_TRES: Final = r"[A-Za-z]"
_F64: Final = pl.Float64()


def _finish_timed(frame: pl.DataFrame, context: Context) -> Finished:
    return Finished(frame.with_columns(epoch_to_time()).drop("time_epoch_s"))


def _finish_node(frame: pl.DataFrame, context: Context) -> Finished:
    return SUPERCLOUD_KINDS["node"].finish(frame, replace(context, mem_unit="kib"))


def _finish_run(frame: pl.DataFrame, context: Context) -> Finished:
    """Return rows of ``jobs``; ``tres_alloc`` is Slurm's text of numbers, or sacct's of names."""
    if "tres_alloc" not in frame.columns:
        return _first_attempts(*slurm_log.finish(frame, context.tres_names))
    is_named = pl.col("tres_alloc").str.contains(_NAMED_TRES).fill_null(False)
    named = frame.select(pl.when(is_named).then("tres_alloc")).to_series()
    rest = frame.with_columns(pl.when(~is_named).then("tres_alloc").alias("tres_alloc"))
    rows, counts = slurm_log.finish(rest, context.tres_names)
    found = [(None, None) if text is None else _gpus(text) for text in named]
    for job_id, text, (count, _) in zip(frame["job_id"], named, found, strict=True):
        if text is not None and count is None:
            counts[job_id, "wrong_type", "tres_alloc"] = counts.get((job_id, "wrong_type", "tres_alloc"), 0) + 1
    told = pl.DataFrame(found, schema={"gpus": pl.Int64, "gpu_type": pl.String}, orient="row")
    columns = [pl.Series("tres_alloc", named), told["gpus"], told["gpu_type"]]
    filled = [pl.coalesce(pl.lit(column), column.name).alias(column.name) for column in columns]
    return _first_attempts(rows.with_columns(filled), counts)


def _gpus(text: str) -> tuple[int | None, str | None]:
    """Return the GPUs in sacct's text of resources, and their type; None where it cannot be read."""
    try:
        return gpus(tres(text))
    except ValueError:
        return None, None


def _first_attempts(rows: pl.DataFrame, counts: dict[tuple[int | None, str, str], int]) -> Finished:
    return Finished(rows.with_columns(attempt=pl.lit(0, pl.Int32)), counts)


_GPU_COLUMNS = GPU_COLUMN_MAP | GPU_KEY_COLUMN_MAP

SPOOL_KINDS: Final[dict[str, FileKind]] = {
    kind.name: kind
    for kind in (
        FileKind(
            "spool_gpu",
            "gpu_samples",
            _GPU_COLUMNS,
            SUPERCLOUD_KINDS["gpu"].types,
            frozenset({"time_epoch_s", "gpu_index", "node"}),
            SUPERCLOUD_KINDS["nvidia_smi"].finish,
            optional=GPU_OPTIONAL_COLUMN_MAP,
            is_named=True,
        ),
        FileKind(
            "spool_process",
            "cpu_samples",
            PROCESS_COLUMN_MAP,
            types_of("cpu_samples", PROCESS_COLUMN_MAP, time_epoch_s=_F64),
            frozenset({"time_epoch_s", "job_id", "node", "step"}),
            SUPERCLOUD_KINDS["cpu"].finish,
            is_named=True,
        ),
        FileKind(
            "spool_node",
            "node_samples",
            NODE_COLUMN_MAP,
            types_of(
                "node_samples",
                SPOOL_NODE_COLUMN_MAP,
                time_epoch_s=_F64,
                mem_free_raw=_F64,
                lustre_rpcs_raw=pl.String(),
            ),
            frozenset({"time_epoch_s", "node"}),
            _finish_node,
            optional={"NfsOps": "nfs_ops", "NodePowerW": "node_power_w"},
            is_named=True,
        ),
        FileKind(
            "spool_devices",
            "device_inventory",
            DEVICE_COLUMN_MAP,
            types_of("device_inventory", DEVICE_COLUMN_MAP, time_epoch_s=_F64),
            frozenset({"time_epoch_s", "node", "gpu_index"}),
            _finish_timed,
            is_named=True,
        ),
        FileKind(
            "spool_events",
            "collector_events",
            EVENT_COLUMN_MAP,
            types_of("collector_events", EVENT_COLUMN_MAP, time_epoch_s=_F64),
            frozenset({"time_epoch_s", "node", "collector", "event"}),
            _finish_timed,
            is_named=True,
        ),
        replace(SUPERCLOUD_KINDS["labels"], name="spool_labels", is_named=True),
        FileKind(
            "spool_jobs",
            "jobs",
            RUN_COLUMN_MAP,
            {column: slurm_log.TYPES[column] for column in RUN_COLUMN_MAP.values()},
            frozenset({"job_id"}),
            _finish_run,
            is_named=True,
        ),
    )
}
"""Kinds of files of a spool; ``jobs/*.sacct.txt`` and ``.json`` are ``sacct``, as anywhere."""
