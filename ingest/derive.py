"""What the lake tells beyond its rows: devices, job statistics, what is odd about a job. Pure; made anew each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from ingest.records import CountKey, FileRecord
from ingest.reference import gpu_types, type_of
from ingest.rollup import join_pieces, summarise_jobs
from ingest.schemas import DEVICE_KEY, DEVICES, QUALITY

OUTSIDE_TOLERANCE_S: Final = 60
_SAMPLE_KINDS = frozenset({"gpu", "gpu_extended", "nvidia_smi", "smi_query", "smi_dmon", "cpu", "node"})
_DEVICE: Final = list(DEVICE_KEY)


@dataclass(frozen=True, slots=True)
class Derived:
    """Frames of ``devices``, ``job_stats``, and the rows of ``quality`` that no single file is the cause of."""

    devices: pl.DataFrame
    job_stats: pl.DataFrame
    quality: pl.DataFrame


def derive(pieces: pl.DataFrame, jobs: pl.DataFrame, labels: pl.DataFrame, inventory: pl.DataFrame) -> Derived:
    """Return what follows from all series of a cluster, its jobs, its labels and the inventory of its GPUs."""
    series = join_pieces(pieces.filter(pl.col("table") == "gpu_samples"))
    seen = _devices(series, jobs)
    found = _inventoried(inventory, seen)
    devices = pl.concat([found, seen.join(found, on=_DEVICE, how="anti")]).sort(DEVICES.key)
    return Derived(devices, summarise_jobs(series, jobs), _oddities(series, jobs, labels))


def _devices(series: pl.DataFrame, jobs: pl.DataFrame) -> pl.DataFrame:
    types = jobs.filter(pl.col("gpu_type").is_not_null()).unique("job_id", keep="last", maintain_order=True)
    tdp = gpu_types().select("gpu_type", "tdp_w")
    found = (
        series.join(types.select("job_id", "gpu_type"), on="job_id", how="left")
        .group_by("node", "gpu_index")
        .agg(
            pl.col("first_time").min().alias("valid_from"),
            pl.col("gpu_type").drop_nulls().mode().sort().first().alias("gpu_type"),
            pl.col("memory_total_max_mib").max().alias("memory_mib"),
        )
        .join(tdp, on="gpu_type", how="left")
        .sort("node", "gpu_index")
    )
    return DEVICES.conform(found)


def _inventoried(inventory: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return rows of ``devices`` by the inventory, one a change; the first holds for earlier samples too."""
    told = ["uuid", "gpu_name", "memory_mib", "limit_default_w", "limit_min_w", "limit_max_w"]
    in_order = inventory.sort(*_DEVICE, "time")
    same = [pl.col(name).eq_missing(pl.col(name).shift().over(_DEVICE)) for name in told]
    is_first = pl.int_range(pl.len()).over(_DEVICE) == 0
    changes = in_order.filter(is_first | ~pl.all_horizontal(same))
    types = [(name, type_of(name)) for name in changes["gpu_name"].drop_nulls().unique()]
    named = pl.DataFrame(types, schema={"gpu_name": pl.String, "gpu_type": pl.String}, orient="row")
    since = seen.select(*_DEVICE, first="valid_from")
    is_first = pl.int_range(pl.len()).over(_DEVICE) == 0
    valid_from = pl.when(is_first).then(pl.min_horizontal("time", "first")).otherwise("time").alias("valid_from")
    return DEVICES.conform(
        changes.join(named, on="gpu_name", how="left", maintain_order="left")
        .join(gpu_types().select("gpu_type", "tdp_w"), on="gpu_type", how="left", maintain_order="left")
        .join(since, on=_DEVICE, how="left", maintain_order="left")
        .with_columns(valid_from)
    )


def _oddities(series: pl.DataFrame, jobs: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    known_jobs = jobs.select("job_id").unique()
    seen = series.filter(pl.col("job_id").is_not_null())
    span = jobs.group_by("job_id").agg(
        pl.col("start_time").min().dt.offset_by(f"-{OUTSIDE_TOLERANCE_S}s"),
        pl.col("end_time").max().dt.offset_by(f"{OUTSIDE_TOLERANCE_S}s"),
    )
    outside = seen.join(span, on="job_id").filter(
        (pl.col("first_time") < pl.col("start_time")) | (pl.col("last_time") > pl.col("end_time"))
    )
    frames = [
        _rows(seen.filter(pl.col("gaps") > 0), "gap", pl.col("gaps").sum()),
        _rows(seen.filter(pl.col("clock_jumps") > 0), "clock_jump", pl.col("clock_jumps").sum()),
        _rows(outside, "outside_job", pl.len().cast(pl.Int64)),
        _rows(_unseen_gpus(seen, jobs), "gpus_not_seen", pl.col("unseen").sum()),
    ]
    if known_jobs.height:
        orphans = seen.join(known_jobs, on="job_id", how="anti")
        frames.append(_rows(orphans, "job_without_record", pl.len().cast(pl.Int64)))
    if known_jobs.height or seen.height:
        unknown = labels.join(known_jobs, on="job_id", how="anti").join(seen, on="job_id", how="anti")
        frames.append(_rows(unknown, "label_without_job", pl.len().cast(pl.Int64)))
    return pl.concat(frames).sort("job_id", "reason")


def _unseen_gpus(seen: pl.DataFrame, jobs: pl.DataFrame) -> pl.DataFrame:
    """Return job_id and ``unseen``, of the jobs of which only some of the allocated GPUs have samples."""
    last = jobs.sort("job_id", "attempt").unique("job_id", keep="last", maintain_order=True)
    counted = seen.group_by("job_id").agg(pl.len().cast(pl.Int64).alias("seen")).join(last, on="job_id")
    return counted.with_columns(unseen=pl.col("gpus") - pl.col("seen")).filter(pl.col("unseen") > 0)


def _rows(frame: pl.DataFrame, reason: str, count: pl.Expr) -> pl.DataFrame:
    grouped = frame.group_by("job_id").agg(count.cast(pl.Int64).alias("count"))
    return QUALITY.conform(grouped.with_columns(file=pl.lit(""), reason=pl.lit(reason), detail=pl.lit("")))


def quality_rows(counts: Mapping[CountKey, int]) -> pl.DataFrame:
    """Return counted observations as rows of ``quality``."""
    rows = [(file, job_id, reason, detail, n) for (file, job_id, reason, detail), n in counts.items()]
    return pl.DataFrame(rows, schema=QUALITY.columns, orient="row").sort("file", "reason", "detail")


def missing_counts(null_cells: Mapping[tuple[str, str], int], records: Mapping[str, FileRecord]) -> dict[CountKey, int]:
    """Return missing cells of sample files by column, as ``column_empty`` where no cell has a value.

    ``records`` are as scanned, before rows of several files were merged.
    """
    counts: dict[CountKey, int] = {}
    for (name, column), n in null_cells.items():
        record = records.get(name)
        if record is None or record.kind not in _SAMPLE_KINDS or n <= 0:
            continue
        reason = "column_empty" if n >= record.rows_out else "missing_value"
        counts[name, None, reason, column] = n
    return counts
