"""The last seconds of every running job, described from the lake that a follower keeps; opens only what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from features.context import read_cpu_samples, read_node_samples, time_parts
from features.describe import describe
from features.extraction import feature_rows, read_span
from features.job import context
from features.variant import Variant
from features.windows import cut_series
from ingest.errors import LakeError
from ingest.feature_commit import INDEX_COLUMNS
from ingest.head import MANIFEST, read_head, read_steadily
from ingest.lake import Lake
from ingest.manifest import NO_PART, with_paths
from ingest.parts import PartReader, reading
from ingest.schemas import FEATURE_SERIES, SERIES_KEY, TIME
from ingest.units import US_PER_S

ACTIVE_S: Final = 60.0
"""A job whose newest sample in the lake is older is not taken to be running."""

_KEY: Final = list(SERIES_KEY)


@dataclass(frozen=True, slots=True)
class LiveFeatures:
    """Rows as of ``features``, with ``cluster`` and ``age_s`` (since the newest sample); and the series that gave none.

    ``short`` has cluster, job_id, node, gpu_index, samples and reason.
    """

    rows: pl.DataFrame
    short: pl.DataFrame


def live_features(
    lake: Path, variant: Variant, *, now_s: float, active_s: float = ACTIVE_S, cluster: str | None = None
) -> LiveFeatures:
    """Describe the newest window of each GPU of every job that runs now.

    A job runs if its newest sample is no older than ``active_s`` and the lake knows of no end of it. Its window is made
    of the newest samples, which must not be older than the window's seconds: what was going on just now counts.

    Parameters
    ----------
    now_s : the time now in epoch seconds
    variant : of its windows, the seconds and the samples a second count

    Raises
    ------
    LakeError
        If there is no lake, it has no GPU samples (of that cluster), or a part of it is damaged.
    ValueError
        If the variant has an even grid: that needs a reading after the window, which the newest one has not.
    """
    if variant.window.even:
        raise ValueError(f"{variant.name} has an even grid, which needs a reading after the window; give one without")
    return read_steadily(lake, lambda: _describe_lake(lake, variant, now_s, active_s, cluster))


def _describe_lake(lake: Path, variant: Variant, now_s: float, active_s: float, cluster: str | None) -> LiveFeatures:
    root = lake.resolve()
    head = read_head(root)
    clusters = sorted({p.cluster for p in head.parts if p.table == "gpu_samples" and cluster in (None, p.cluster)})
    if not clusters:
        of = "" if cluster is None else f" of a cluster {cluster!r}"
        raise LakeError(f"{lake} has no GPU samples{of}; follow a spool into it: jobwatt lake ingest SPOOL --follow")
    opened = Lake(root)
    found = [_Cluster(opened, name, variant, now_s, active_s).describe() for name in clusters]
    return LiveFeatures(
        pl.concat([one.rows for one in found], how="diagonal_relaxed"), pl.concat([one.short for one in found])
    )


class _Cluster:
    """The running jobs of one cluster."""

    def __init__(self, lake: Lake, cluster: str, variant: Variant, now_s: float, active_s: float) -> None:
        self._lake, self._cluster, self._variant = lake, cluster, variant
        self._now_us = round(now_s * US_PER_S)
        self._active_us = round(active_s * US_PER_S)
        self._window_us = round(variant.window.seconds * US_PER_S)
        self._reader = PartReader()
        self._pieces = self._read_pieces()

    def describe(self) -> LiveFeatures:
        """Describe every running series."""
        variant, spec = self._variant, self._variant.window
        keys: list[dict[str, Any]] = []
        short: list[dict[str, Any]] = []
        values = [np.empty((0, len(variant.channels), spec.n_samples), np.float32)]
        rates = [np.empty(0)]
        for mine in self._running().partition_by(_KEY, maintain_order=True):
            key = dict(zip(_KEY, mine.select(_KEY).row(0), strict=True))
            last_us = int(mine["last_time"].to_physical().max() or 0)  # type: ignore[arg-type]
            samples = read_span(self._reader, mine, last_us - self._window_us + 1, last_us + 1, variant.channels)
            if samples.height < spec.n_samples:
                short.append({**key, "samples": samples.height, "reason": "too_few_samples"})
                continue
            start_us = int(samples["time"].to_physical()[-spec.n_samples])
            window, rate, reasons = cut_series(samples, np.array([start_us]), spec, variant.channels)
            if reasons[0]:
                short.append({**key, "samples": samples.height, "reason": reasons[0]})
                continue
            keys.append({**key, "start_us": start_us, "last_us": last_us})
            values.append(window)
            rates.append(rate)
        schema = {name: FEATURE_SERIES.columns[name] for name in _KEY}
        windows = pl.DataFrame(keys, schema={**schema, "start_us": pl.Int64, "last_us": pl.Int64})
        around = self._context(windows) if variant.set.context else None
        rate = np.concatenate(rates)
        described = describe(np.concatenate(values), rate, variant, around)
        rows = feature_rows(variant, windows.with_columns(samples_per_s=rate), described)
        age_s = pl.Series("age_s", (self._now_us - windows["last_us"].to_numpy()) / US_PER_S, dtype=pl.Float64)
        left = pl.DataFrame(short, schema={**schema, "samples": pl.Int64, "reason": pl.String})
        return LiveFeatures(
            rows.insert_column(0, pl.lit(self._cluster).alias("cluster")).insert_column(6, age_s),
            left.insert_column(0, pl.lit(self._cluster).alias("cluster")),
        )

    def _read_pieces(self) -> pl.DataFrame:
        """The pieces that may hold something of the last seconds; the index's row groups of older ones are skipped."""
        head = read_head(self._lake.root)
        path = self._lake.root / MANIFEST / head.pieces
        since = pl.lit(self._now_us - self._active_us - self._window_us).cast(TIME)
        recent = (pl.col("table") == "gpu_samples") & (pl.col("last_time") >= since)
        if self._variant.set.context:
            recent |= pl.col("table") == "cpu_samples"
        with reading(path):
            found = (
                pl.scan_parquet(path, hive_partitioning=False)
                .filter((pl.col("cluster") == self._cluster) & (pl.col("part") != NO_PART) & recent)
                .select(INDEX_COLUMNS)
                .collect()
            )
        return with_paths(self._lake.root, head, found).drop("part").rename({"path": "part"})

    def _running(self) -> pl.DataFrame:
        """The pieces of the series of jobs that run."""
        mine = self._pieces.filter((pl.col("table") == "gpu_samples") & pl.col("job_id").is_not_null())
        newest = pl.col("last_time").max().over(_KEY).to_physical()
        mine = mine.filter(newest.is_between(self._now_us - self._active_us, self._now_us + self._active_us))
        jobs = mine["job_id"].unique().to_list()
        with reading(self._lake.root / "jobs"):
            ended = (
                self._lake.scan("jobs", self._cluster)
                .filter(pl.col("job_id").is_in(jobs))
                .sort("job_id", "attempt")
                .group_by("job_id")
                .agg(pl.col("end_time").last())
                .filter(pl.col("end_time").to_physical() <= self._now_us)
                .collect()
            )
        return mine.join(ended, on="job_id", how="anti").sort(*_KEY, "first_time")

    def _context(self, windows: pl.DataFrame) -> Any:
        """What is around the windows, which all end about now."""
        spans = windows.with_columns(end_us=pl.col("last_us"))
        cpu = read_cpu_samples(self._reader, self._pieces.filter(pl.col("table") == "cpu_samples"), spans)
        nodes = time_parts(self._lake.paths("node_samples", self._cluster))
        return context(spans, cpu, read_node_samples(nodes, spans))
