"""The attempts of a job in the order of time, whatever order the log has them in.

A scan numbers them as it meets them, piece by piece; only the commit sees the whole log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from ingest.part_writer import write_part
from ingest.records import Part, ScanResult
from ingest.schemas import JOBS

_COLUMNS = ["job_id", "attempt", "submit_time", "start_time"]


def number_in_time(results: Sequence[ScanResult]) -> tuple[ScanResult, ...]:
    """Return what was staged with the attempts of every job numbered in time; parts that this changes are rewritten."""
    staged = [part for result in results for part in result.parts if part.table == "jobs"]
    moved = moved_attempts(_read_attempts(staged))
    if not moved.height:
        return tuple(results)
    return tuple(
        replace(result, parts=tuple(_renumber(part, moved) if part.table == "jobs" else part for part in result.parts))
        for result in results
    )


def moved_attempts(attempts: pl.DataFrame) -> pl.DataFrame:
    """Return job_id, attempt and ``in_time``, its number in time, of the attempts whose number changes.

    Parameters
    ----------
    attempts : job_id, attempt (in the log's order), submit_time, start_time; an attempt without times comes last

    >>> from datetime import datetime as at
    >>> times = {"submit_time": [at(2026, 1, 2), at(2026, 1, 1)], "start_time": [None, None]}
    >>> moved_attempts(pl.DataFrame({"job_id": [7, 7], "attempt": [0, 1], **times})).rows()
    [(7, 1, 0), (7, 0, 1)]
    """
    several = attempts.filter(pl.col("job_id").is_in(attempts.filter(pl.col("attempt") > 0)["job_id"].implode()))
    first = pl.coalesce("submit_time", "start_time")
    in_time = several.sort("job_id", first, "start_time", "attempt", nulls_last=True).with_columns(
        in_time=pl.int_range(pl.len(), dtype=pl.Int32).over("job_id")
    )
    return in_time.filter(pl.col("attempt") != pl.col("in_time")).select("job_id", "attempt", "in_time")


def _read_attempts(parts: Sequence[Part]) -> pl.DataFrame:
    if not parts:
        return JOBS.empty().select(_COLUMNS)
    return pl.scan_parquet([part.path for part in parts], hive_partitioning=False).select(_COLUMNS).collect()


def _renumber(part: Part, moved: pl.DataFrame) -> Part:
    rows = pl.read_parquet(part.path, hive_partitioning=False)
    joined = rows.join(moved, on=["job_id", "attempt"], how="left", maintain_order="left")
    if joined["in_time"].null_count() == joined.height:
        return part
    renumbered = joined.with_columns(attempt=pl.coalesce("in_time", "attempt")).drop("in_time")
    path = Path(part.path)
    fresh = path.with_suffix(".renumbered")
    written = write_part(fresh, "jobs", renumbered.sort(JOBS.key))
    fresh.replace(path)
    return replace(written, path=part.path)
