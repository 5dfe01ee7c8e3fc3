"""What is written beside the samples so that nobody has to scan them: minutes, whole series, job statistics.

Pure: frames in, frames out. The summaries of a series' pieces (`ingest.summaries`) add up exactly: `join_pieces` puts
in the seam between two.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ingest.quality import CLOCK_JUMP_S, MAX_GAP_S
from ingest.schemas import GPU_MINUTES, JOB_STATS, SERIES_KEY
from ingest.summaries import PIECE_SCHEMA
from ingest.units import US_PER_S

_BOTH = ("both_energy_j", "both_counter_j")


def join_minutes(minutes: pl.DataFrame) -> pl.DataFrame:
    """Return ``gpu_minutes`` sorted by key with the parts of one minute added up (means weighted by their n)."""
    key = list(GPU_MINUTES.key)
    if not minutes.select(key).is_duplicated().any():
        return minutes.sort(key)

    def weighted(mean: str, count: str) -> pl.Expr:
        total = (pl.col(mean).cast(pl.Float64) * pl.col(count)).sum()
        return pl.when(pl.col(count).sum() > 0).then(total / pl.col(count).sum()).alias(mean)

    counts = [name for name in minutes.columns if name == "n" or name.startswith("n_")]
    joined = minutes.group_by(key).agg(
        *[pl.col(name).sum() for name in counts],
        *[pl.col(name).max() for name in minutes.columns if "_max_" in name],
        *[pl.col(name).min() for name in minutes.columns if "_min_" in name],
        weighted("power_mean_w", "n_power"),
        weighted("gpu_util_mean_pct", "n_gpu_util"),
        weighted("memory_util_mean_pct", "n_memory_util"),
        weighted("gpu_temp_mean_c", "n_gpu_temp"),
    )
    return GPU_MINUTES.conform(joined).sort(key)


def minutes_without(minutes: pl.DataFrame, keys: pl.DataFrame, kept_until: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return the minutes of all series but those in ``keys`` (columns of the series key).

    Parameters
    ----------
    kept_until : as from `last_minutes`; of these series the minutes up to then stay too
    """
    if not keys.height or not minutes.height:
        return minutes
    unique = keys.select(SERIES_KEY).unique()
    left = minutes.join(unique, on=SERIES_KEY, how="anti", nulls_equal=True)
    if kept_until is not None and kept_until.height:
        stays = minutes.join(unique, on=SERIES_KEY, how="semi", nulls_equal=True)
        stays = stays.join(kept_until, on=SERIES_KEY, how="inner", nulls_equal=True)
        left = pl.concat([left, stays.filter(pl.col("minute") <= pl.col("until")).drop("until")])
    return GPU_MINUTES.conform(left).sort(GPU_MINUTES.key)


def minutes_after(minutes: pl.DataFrame, kept_until: pl.DataFrame) -> pl.DataFrame:
    """Return the minutes without those of a series up to the time in ``kept_until``."""
    if not kept_until.height:
        return minutes
    after = minutes.join(kept_until, on=SERIES_KEY, how="left", nulls_equal=True, maintain_order="left")
    return after.filter(pl.col("until").is_null() | (pl.col("minute") > pl.col("until"))).drop("until")


def last_minutes(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the series key, and ``until``: the minute of the last sample in some pieces of each series."""
    return pieces.group_by(SERIES_KEY).agg(pl.col("last_time").max().dt.truncate("1m").alias("until"))


def seam_minutes(pieces: pl.DataFrame, task_of: Mapping[str, str]) -> pl.DataFrame:
    """Return the keys of the minutes that two tasks have a part of each: a series went from one to the other in them.

    Parameters
    ----------
    pieces : pieces of parts; those of one series do not overlap in time
    task_of : part to the task that wrote it
    """
    series = list(SERIES_KEY)
    samples = pieces.filter((pl.col("table") == "gpu_samples") & ~pl.col("extended"))
    task = pl.col("part").replace_strict(task_of, return_dtype=pl.String)
    ordered = samples.select(*series, "first_time", "last_time", task=task).sort(*series, "first_time")
    minute = pl.col("first_time").dt.truncate("1m")
    before = pl.col("last_time").shift().over(series).dt.truncate("1m")
    handed_over = (minute == before) & (pl.col("task") != pl.col("task").shift().over(series))
    return ordered.filter(handed_over.fill_null(False)).select(*series, minute=minute).unique()


def fold_pieces(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return one piece a series, as if all samples had been summed up together: the series key and `PIECE_SCHEMA`."""
    edges = []
    for name in PIECE_SCHEMA:
        if "_first_" in name:
            edges.append(pl.col(name).drop_nulls().first())
        elif "_last_" in name:
            edges.append(pl.col(name).drop_nulls().last())
    key = list(SERIES_KEY)
    seamed = _seam_pieces(pieces)
    at = seamed.group_by(key, maintain_order=True).agg(edges)
    sums = _sum_pieces(seamed)
    null_gain = [pl.when(pl.col("counter_first_j").is_not_null()).then("counter_gain_j").alias("counter_gain_j")]
    null_gain += [pl.when(pl.col("both_first_j").is_not_null()).then(n).alias(n) for n in _BOTH]
    joined = sums.join(at, on=key, how="left", nulls_equal=True, maintain_order="left").with_columns(null_gain)
    return joined.select(*key, *[pl.col(name).cast(dtype) for name, dtype in PIECE_SCHEMA.items()])


def join_pieces(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return one row a series from the summaries of its pieces: sums, extremes, and the seams between pieces.

    ``pieces`` has the series key, the columns of `PIECE_SCHEMA`, and pieces of one series do not overlap in time.
    """
    return _sum_pieces(_seam_pieces(pieces))


def _sum_pieces(seamed: pl.DataFrame) -> pl.DataFrame:
    sums = ["rows", "covered_s", "energy_j", "gaps", "power_gaps", "clock_jumps", "gpu_util_sum", "gpu_util_n", *_BOTH]
    extremes = ["longest_gap_s", "power_max_w", "memory_used_max_mib", "memory_total_max_mib", "gpu_temp_max_c"]
    return seamed.group_by(list(SERIES_KEY), maintain_order=True).agg(
        pl.col("first_time").min(),
        pl.col("last_time").max(),
        *[pl.col(name).sum() for name in sums],
        *[pl.col(name).max() for name in extremes],
        pl.when(pl.col("counter_gain_j").count() > 0).then(pl.col("counter_gain_j").sum()).alias("counter_gain_j"),
        (pl.col("power_max_w").count() > 0).alias("has_power"),
    )


def _seam_pieces(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the pieces in order, each with the seam to the one before it added.

    ``both_*_after_*`` count from the first power of the series here, and no longer from the piece's own.
    """
    key = list(SERIES_KEY)
    ordered = pieces.sort([*key, "first_time"], nulls_last=False)
    previous = {
        name: pl.col(name).forward_fill().shift().over(key)
        for name in ("last_time", "power_last_time", "power_last_w", "counter_last_j")
    }
    step_s = (pl.col("first_time") - previous["last_time"]).dt.total_microseconds() / US_PER_S
    power_step_s = (pl.col("power_first_time") - previous["power_last_time"]).dt.total_microseconds() / US_PER_S
    is_joined = (power_step_s <= MAX_GAP_S).fill_null(False)
    seam_w = (pl.col("power_first_w") + previous["power_last_w"]) / 2
    seamed = ordered.with_columns(
        pl.col("covered_s") + pl.when(is_joined).then(power_step_s).otherwise(0.0),
        pl.col("gaps") + (step_s > MAX_GAP_S).fill_null(False).cast(pl.Int64),
        pl.col("clock_jumps") + (step_s > CLOCK_JUMP_S).fill_null(False).cast(pl.Int64),
        pl.max_horizontal("longest_gap_s", pl.when(step_s > MAX_GAP_S).then(step_s).otherwise(0.0)).alias(
            "longest_gap_s"
        ),
        pl.col("counter_gain_j") + (pl.col("counter_first_j") - previous["counter_last_j"]).clip(0).fill_null(0.0),
        # a piece of an older lake does not tell its gaps: nothing is told across it
        pl.col("power_gaps").fill_null(1),
        seam_j=pl.when(is_joined).then(power_step_s * seam_w).otherwise(0.0),
        seam_gaps=(power_step_s > MAX_GAP_S).fill_null(False).cast(pl.Int64),
    ).with_columns(pl.col("energy_j") + pl.col("seam_j"), pl.col("power_gaps") + pl.col("seam_gaps"))
    return _seam_readings(seamed).drop("seam_j", "seam_gaps")


def _seam_readings(seamed: pl.DataFrame) -> pl.DataFrame:
    """Add both energies between the last reading of the counter in an earlier piece and the first one in this."""
    key = list(SERIES_KEY)
    sums = {"j": ("energy_j", "seam_j"), "gaps": ("power_gaps", "seam_gaps")}
    before = {unit: pl.col(a).cum_sum().over(key) - pl.col(a) + pl.col(b) for unit, (a, b) in sums.items()}
    placed = seamed.with_columns(
        pl.col(f"both_{edge}_after_{unit}") + before[unit] for edge in ("first", "last") for unit in sums
    )

    def since_last(name: str) -> pl.Expr:
        before = pl.col(name.replace("_first_", "_last_")).forward_fill().shift().over(key)
        return pl.col(name) - before

    rise_j, energy_j = since_last("both_first_j"), since_last("both_first_after_j")
    counts = ((rise_j >= 0) & (since_last("both_first_after_gaps") == 0)).fill_null(False)
    return placed.with_columns(
        pl.col("both_energy_j") + pl.when(counts).then(energy_j).otherwise(0.0),
        pl.col("both_counter_j") + pl.when(counts).then(rise_j).otherwise(0.0),
    )


def summarise_jobs(series: pl.DataFrame, jobs: pl.DataFrame) -> pl.DataFrame:
    """Return rows of ``job_stats`` from `join_pieces`' rows and the scheduler's jobs (last attempt counts)."""
    run = jobs.sort("job_id", "attempt").unique("job_id", keep="last", maintain_order=True)
    run_s = (pl.col("end_time") - pl.col("start_time")).dt.total_microseconds() / US_PER_S
    known = run.select("job_id", run_s.alias("run_s"), pl.col("gpus").alias("allocated_gpus"))
    total_n = pl.col("gpu_util_n").sum()
    by_job = (
        series.filter(pl.col("job_id").is_not_null())
        .group_by("job_id")
        .agg(
            pl.col("node").n_unique().alias("nodes"),
            pl.len().alias("gpus"),
            pl.col("rows").sum().alias("samples"),
            pl.col("first_time").min(),
            pl.col("last_time").max(),
            pl.col("covered_s").sum().alias("covered_gpu_s"),
            pl.col("gaps").sum(),
            pl.col("longest_gap_s").max(),
            pl.when(pl.col("has_power").any()).then(pl.col("energy_j").sum()).alias("energy_j"),
            pl.when(pl.col("counter_gain_j").count() == pl.len())
            .then(pl.col("counter_gain_j").sum())
            .alias("energy_counter_j"),
            pl.col("both_energy_j").sum(),
            pl.col("both_counter_j").sum(),
            pl.col("power_max_w").max(),
            pl.when(total_n > 0).then(pl.col("gpu_util_sum").sum() / total_n).alias("gpu_util_mean_pct"),
            pl.col("memory_used_max_mib").max(),
            pl.col("gpu_temp_max_c").max(),
        )
        .join(known, on="job_id", how="left")
    )
    span_s = (pl.col("last_time") - pl.col("first_time")).dt.total_microseconds() / US_PER_S
    due_gpus = pl.max_horizontal("gpus", "allocated_gpus")
    due_s = pl.when(pl.col("run_s") > 0).then(pl.col("run_s")).otherwise(span_s) * due_gpus
    return JOB_STATS.conform(
        by_job.with_columns(
            pl.when(due_s > 0).then((pl.col("covered_gpu_s") / due_s).clip(0, 1)).alias("coverage"),
            pl.when(pl.col("covered_gpu_s") > 0)
            .then(pl.col("energy_j") / pl.col("covered_gpu_s"))
            .alias("power_mean_w"),
            pl.when(pl.col("both_counter_j") > 0)
            .then(100 * (pl.col("both_energy_j") / pl.col("both_counter_j") - 1))
            .alias("energy_gap_pct"),
        )
    ).sort("job_id")
