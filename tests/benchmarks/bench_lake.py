"""Reading out of a lake of 50 million rows, warm: ours and the obvious way in turn, in one process."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import polars as pl
import polars.testing

from ingest.lake import Lake
from tests.benchmarks.archives import challenge_archive, fresh, run_ingest
from tests.benchmarks.measure import spread, time_calls
from tests.benchmarks.report import table

FULL_BYTES, QUICK_BYTES = 2.67e9, 20e6


def lake_reads(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of reading times."""
    archive = challenge_archive(QUICK_BYTES if quick else FULL_BYTES, tell)
    root = fresh("lakes/reads")
    tell(f"filling a lake of {archive.rows['gpu_samples']:,} rows")
    run_ingest(archive, root)
    lake = Lake(root)
    repeats = max(runs, 3 if quick else 7)
    rows = [*_one_job(lake, repeats, tell), *_all_jobs(lake, repeats, tell), *_power_by_class(lake, repeats, tell)]
    return (
        f"## Reading out of the lake\n\n{archive.rows['gpu_samples']:,} rows of {archive.rows['jobs']:,} jobs, warm, "
        f"in one process; {repeats} repetitions after one that does not count. The two answers are compared first.\n\n"
        + table(["question", "jobwatt ms", "peer", "peer ms", "jobwatt / peer", "bar"], rows)
    )


def _one_job(lake: Lake, repeats: int, tell: Callable[[str], None]) -> list[list[str]]:
    everywhere = _glob(lake)
    jobs = lake.scan("job_stats").select("job_id").collect()["job_id"].sort().to_list()
    chosen = random.Random(1).sample(jobs, min(len(jobs), 3 * repeats))

    def ours(job_id: int) -> pl.DataFrame:
        return lake.read_series(job_id, ["time", "power_w"])

    def reopened(job_id: int) -> pl.DataFrame:
        return Lake(lake.root).read_series(job_id, ["time", "power_w"])

    def peer(job_id: int) -> pl.DataFrame:
        return pl.scan_parquet(everywhere).filter(pl.col("job_id") == job_id).select("time", "power_w").collect()

    for job_id in chosen[:3]:
        polars.testing.assert_frame_equal(ours(job_id).select("time", "power_w"), peer(job_id))
    peer_ms = [time_calls(partial(peer, job), 1)[0] for job in chosen[:repeats]]
    rows = []
    for name, read in (("one job's two columns", ours), ("the same, opening the lake each time", reopened)):
        ours_ms = [time_calls(partial(read, job), 1)[0] for job in chosen]
        bar = "≤ 1/10" if read is ours else ""
        rows.append(_row(name, ours_ms, "polars, unindexed glob", peer_ms, bar))
        tell(" | ".join(rows[-1]))
    return rows


def _all_jobs(lake: Lake, repeats: int, tell: Callable[[str], None]) -> list[list[str]]:
    columns = ["job_id", "samples", "first_time", "last_time", "power_max_w"]

    def ours() -> pl.DataFrame:
        return lake.scan("job_stats").select(columns).collect()

    def scheduled() -> pl.DataFrame:
        stats = lake.scan("job_stats").drop("cluster")
        return lake.scan("jobs").join(stats, on="job_id", how="left").collect()

    connection = _duckdb()
    query = (
        "select job_id, count(*)::bigint samples, min(time) first_time, max(time) last_time, max(power_w) power_max_w "
        f"from read_parquet('{_glob(lake)}') group by job_id"
    )

    polars.testing.assert_frame_equal(_instants(ours()), _instants(_answer(connection, query)), check_row_order=False)
    peer_ms = time_calls(partial(_answer, connection, query), repeats)
    rows = [
        _row("list of all jobs", time_calls(ours, repeats), "DuckDB, raw samples", peer_ms, "≤ 1/50"),
        _row("the same, with all the scheduler knows", time_calls(scheduled, repeats), "the same", peer_ms, ""),
    ]
    for row in rows:
        tell(" | ".join(row))
    return rows


def _power_by_class(lake: Lake, repeats: int, tell: Callable[[str], None]) -> list[list[str]]:
    """Two readings of the same question: mean draw of a GPU, which DuckDB can do in one pass, and the summed draw."""
    labels = lake.scan("labels").select("job_id", "label")
    minutes = lake.scan("gpu_minutes")

    def ours_sum() -> pl.DataFrame:
        return (
            minutes.join(labels, on="job_id")
            .group_by("minute", "label")
            .agg(pl.col("power_mean_w").sum().alias("w"))
            .collect()
        )

    def ours_mean() -> pl.DataFrame:
        weighed = (pl.col("power_mean_w").cast(pl.Float64) * pl.col("n_power")).sum() / pl.col("n_power").sum()
        return minutes.join(labels, on="job_id").group_by("minute", "label").agg(weighed.alias("w")).collect()

    connection = _duckdb()
    raw = f"read_parquet('{_glob(lake)}')"
    connection.register("labels", labels.collect().to_arrow())
    mean_query = (
        f"select time_bucket(interval 1 minute, time) as minute, label, avg(power_w::double) w from {raw} "
        "join labels using (job_id) group by all"
    )
    sum_query = (
        "select minute, label, sum(w) w from (select job_id, node, gpu_index, time_bucket(interval 1 minute, time) "
        f"as minute, avg(power_w::double) w from {raw} group by all) join labels using (job_id) group by all"
    )
    rows = []
    for name, ours, query in (
        ("mean power per minute by class", ours_mean, mean_query),
        ("cluster power per minute by class", ours_sum, sum_query),
    ):
        _assert_close(ours(), _answer(connection, query))
        peer_ms = time_calls(partial(_answer, connection, query), repeats)
        rows.append(_row(name, time_calls(ours, repeats), "DuckDB, raw samples", peer_ms, "≤ 1/50"))
        tell(" | ".join(rows[-1]))
    return rows


def _glob(lake: Lake) -> str:
    """Return a pattern that matches the table's files and no other."""
    folders = {Path(*path.relative_to(lake.root).parts[:1]) for path in lake.paths("gpu_samples")}
    (folder,) = folders
    return str(lake.root / folder / "**" / "*.parquet")


def _duckdb() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("set TimeZone = 'UTC'")
    return connection


def _answer(connection: duckdb.DuckDBPyConnection, query: str) -> pl.DataFrame:
    return connection.sql(query).pl()


def _instants(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with its instants as microseconds, since the two engines name the zone differently."""
    return frame.select(
        pl.col("job_id", "samples").cast(pl.Int64),
        pl.col("first_time", "last_time").dt.timestamp("us"),
        pl.col("power_max_w").cast(pl.Float32),
    )


def _assert_close(ours: pl.DataFrame, peer: pl.DataFrame) -> None:
    key = [pl.col("minute").dt.timestamp("us").alias("minute"), "label", pl.col("w").cast(pl.Float64)]
    polars.testing.assert_frame_equal(
        ours.select(key).sort("minute", "label"), peer.select(key).sort("minute", "label"), rel_tol=1e-4
    )


def _row(question: str, ours_ms: list[float], peer: str, peer_ms: list[float], bar: str) -> list[str]:
    ratio = statistics.median(peer_ms) / statistics.median(ours_ms)
    return [question, spread(ours_ms), peer, spread(peer_ms, ".1f"), f"1/{ratio:.0f}", bar]
