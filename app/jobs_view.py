"""The jobs of a lake as a list and one by one, out of the tables that are small; samples are never read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from ingest.errors import LakeError
from ingest.units import J_PER_KWH

LIST_COLUMNS = (
    "cluster",
    "job_id",
    "user",
    "state",
    "label",
    "start_time",
    "run_s",
    "nodes",
    "gpus",
    "gpu_type",
    "power_mean_w",
    "power_max_w",
    "energy_kwh",
    "coverage",
)


@dataclass(frozen=True, slots=True)
class GpuLine:
    """What one job did on one GPU, out of the one-minute roll-up.

    ``power_mean_w`` is the mean of its readings; that of the job is weighted by time, and so differs a little.
    """

    node: str
    gpu_index: int
    gpu_type: str | None
    samples: int
    power_mean_w: float | None
    power_max_w: float | None
    gpu_util_mean_pct: float | None
    memory_used_max_mib: int | None


@dataclass(frozen=True, slots=True)
class ReasonLine:
    """Why something of a job is not as it was written: a reason code of ``quality`` or of ``quarantine``."""

    table: str
    reason: str
    detail: str | None
    count: int


@dataclass(frozen=True, slots=True)
class JobDetail:
    """One job: what the scheduler says of its last attempt, what its GPUs drew, and what is known to be wrong with it.

    ``energy_j`` and ``power_mean_w`` are over the covered time only; ``coverage`` says how much of the job that is.
    """

    cluster: str
    job_id: int
    label: str | None
    state: str | None
    attempts: int
    user: str | None
    partition: str | None
    submit_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    wait_s: float | None
    run_s: float | None
    exit_code: int | None
    nodes: int | None
    gpus: int | None
    gpu_type: str | None
    power_mean_w: float | None
    power_max_w: float | None
    energy_j: float | None
    energy_kwh: float | None
    energy_counter_j: float | None
    gpu_util_mean_pct: float | None
    memory_used_max_mib: int | None
    samples: int | None
    coverage: float | None
    gaps: int | None
    longest_gap_s: float | None
    used: tuple[GpuLine, ...]
    reasons: tuple[ReasonLine, ...]


def list_jobs(
    jobs: pl.LazyFrame,
    stats: pl.LazyFrame,
    labels: pl.LazyFrame,
    *,
    user: str | None = None,
    state: str | None = None,
    label: str | None = None,
    sort: str = "start_time",
    descending: bool = True,
) -> pl.LazyFrame:
    """Return one row for each job, with `LIST_COLUMNS`: its last attempt, its statistics, its label.

    A job of which only the samples or only the scheduler's row is there has null for the rest. Nulls sort last.
    """
    if sort not in LIST_COLUMNS:
        raise ValueError(f"sort is {sort!r}; give one of {', '.join(LIST_COLUMNS)}")
    listed = _joined(jobs, stats, labels).select(LIST_COLUMNS)
    if user is not None:
        listed = listed.filter(pl.col("user") == user)
    if state is not None:
        listed = listed.filter(pl.col("state").str.to_uppercase() == state.upper())
    if label is not None:
        listed = listed.filter(pl.col("label") == label)
    by = [pl.col(sort), *(pl.col(name).alias(f"then_{name}") for name in ("cluster", "job_id"))]
    return listed.sort(by, descending=[descending, False, False], nulls_last=True)


def clusters_of(job_id: int, jobs: pl.LazyFrame, stats: pl.LazyFrame) -> list[str]:
    """Return the clusters that have a job of this id, in order."""
    here = pl.col("job_id") == job_id
    found = pl.concat([frame.filter(here).select("cluster") for frame in (jobs, stats)]).unique().collect()
    return sorted(found["cluster"].to_list())


def describe_job(job_id: int, cluster: str, tables: Mapping[str, pl.LazyFrame]) -> JobDetail:
    """Return one job out of the lake's tables jobs, job_stats, labels, gpu_minutes, devices, quality, quarantine.

    Raises
    ------
    LakeError
        There is no such job.
    """
    here = {name: frame.filter(pl.col("cluster") == cluster) for name, frame in tables.items()}
    ours = {
        name: here[name].filter(pl.col("job_id") == job_id)
        for name in ("jobs", "job_stats", "labels", "gpu_minutes", "quality")
    }
    rows = _joined(ours["jobs"], ours["job_stats"], ours["labels"]).collect().to_dicts()
    if not rows:
        raise LakeError(f"no job {job_id} in cluster {cluster}; `jobwatt jobs list` shows what there is")
    row: dict[str, Any] = rows[0]
    used = _used_gpus(ours["gpu_minutes"], here["devices"])
    reasons = _reasons(job_id, ours["quality"], here["quarantine"])
    names = [name for name in JobDetail.__dataclass_fields__ if name not in ("used", "reasons")]
    return JobDetail(**{name: row[name] for name in names}, used=used, reasons=reasons)


def _joined(jobs: pl.LazyFrame, stats: pl.LazyFrame, labels: pl.LazyFrame) -> pl.LazyFrame:
    key = ["cluster", "job_id"]
    last = jobs.group_by(key).agg(pl.all().get(pl.col("attempt").arg_max()), attempts=pl.len())
    joined = last.join(stats, on=key, how="full", coalesce=True, suffix="_seen").join(labels, on=key, how="left")
    seconds = pl.col("end_time") - pl.col("start_time")
    wait = pl.col("start_time") - pl.coalesce("eligible_time", "submit_time")
    return joined.with_columns(
        attempts=pl.col("attempts").fill_null(0),
        nodes=pl.coalesce("nodes", "nodes_seen"),
        gpus=pl.coalesce("gpus", "gpus_seen"),
        run_s=seconds.dt.total_microseconds() / 1e6,
        wait_s=wait.dt.total_microseconds() / 1e6,
        energy_kwh=pl.col("energy_j") / J_PER_KWH,
    )


def _used_gpus(minutes: pl.LazyFrame, devices: pl.LazyFrame) -> tuple[GpuLine, ...]:
    gpu = ["node", "gpu_index"]
    types = devices.sort("valid_from").group_by(gpu).agg(pl.col("gpu_type").last())

    def mean(quantity: str, count: str) -> pl.Expr:
        weighed = (pl.col(quantity).cast(pl.Float64) * pl.col(count)).sum() / pl.col(count).sum()
        return pl.when(pl.col(count).sum() > 0).then(weighed).alias(quantity)

    used = (
        minutes.group_by(gpu)
        .agg(
            pl.col("n").sum().alias("samples"),
            mean("power_mean_w", "n_power"),
            pl.col("power_max_w").max().cast(pl.Float64),
            mean("gpu_util_mean_pct", "n_gpu_util"),
            pl.col("memory_used_max_mib").max(),
        )
        .join(types, on=gpu, how="left")
        .sort(gpu)
        .collect()
    )
    return tuple(GpuLine(**row) for row in used.select(list(GpuLine.__dataclass_fields__)).to_dicts())


def _reasons(job_id: int, quality: pl.LazyFrame, quarantine: pl.LazyFrame) -> tuple[ReasonLine, ...]:
    """Return the reason codes of a job with their counts; a quarantined line counts where its file is this job's.

    ``quality`` counts such lines as well: what is left of it is said beside them.
    """
    refused = (
        quarantine.filter(pl.col("file").str.contains(rf"(?:^|/){job_id}-[^/]*$"))
        .group_by("reason", detail=pl.col("table"))
        .agg(count=pl.col("rows").sum())
    )
    told = refused.group_by("reason").agg(told=pl.col("count").sum())
    observed = (
        quality.group_by("reason", "detail")
        .agg(pl.col("count").sum())
        .join(told, on="reason", how="left")
        .with_columns(pl.col("count") - pl.when(pl.col("detail") == "").then("told").fill_null(0))
        .filter(pl.col("count") > 0)
    )
    lines = [
        ReasonLine(table=table, reason=row["reason"], detail=row["detail"], count=row["count"])
        for table, frame in (("quality", observed), ("quarantine", refused))
        for row in frame.sort("reason", "detail").collect().to_dicts()
    ]
    return tuple(lines)
