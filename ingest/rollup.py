"""What is written beside the samples so that nobody has to scan them: series summaries, minutes, job statistics.

Pure: arrays and frames in, frames out. A *series* is one GPU of one job on one node; its samples may lie in several pieces
(a file longer than one batch), whose summaries add up exactly: `join_pieces` puts the seam between two pieces in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from ingest.quality import CLOCK_JUMP_S, MAX_GAP_S
from ingest.schemas import GPU_MINUTES, JOB_STATS, TIME
from ingest.units import S_PER_MINUTE, US_PER_S

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SERIES_KEY = ("job_id", "node", "gpu_index")
_MINUTE_US = S_PER_MINUTE * US_PER_S
_MAX_GAP_US = int(MAX_GAP_S * US_PER_S)
_CLOCK_JUMP_US = int(CLOCK_JUMP_S * US_PER_S)

PIECE_SCHEMA: dict[str, pl.DataType] = {
    "rows": pl.Int64(),
    "first_time": TIME,
    "last_time": TIME,
    "power_first_time": TIME,
    "power_last_time": TIME,
    "power_first_w": pl.Float64(),
    "power_last_w": pl.Float64(),
    "covered_s": pl.Float64(),
    "energy_j": pl.Float64(),
    "gaps": pl.Int64(),
    "clock_jumps": pl.Int64(),
    "longest_gap_s": pl.Float64(),
    "power_max_w": pl.Float32(),
    "gpu_util_sum": pl.Float64(),
    "gpu_util_n": pl.Int64(),
    "memory_used_max_mib": pl.UInt32(),
    "memory_total_max_mib": pl.UInt32(),
    "gpu_temp_max_c": pl.Int16(),
    "counter_first_j": pl.Float64(),
    "counter_last_j": pl.Float64(),
    "counter_gain_j": pl.Float64(),
}
"""Columns of one piece's summary, which the manifest keeps for each piece of each series."""


def energy_j(time_us: IntArray, power_w: FloatArray) -> float:
    """Return the energy of one series by trapezoids, nothing counted across a gap longer than `MAX_GAP_S`.

    Parameters
    ----------
    time_us, power_w : arrays of shape (n,)
        Sorted by time; no missing values.

    >>> energy_j(np.array([0, 1_000_000, 60_000_000]), np.array([100.0, 200.0, 200.0]))
    150.0
    """
    step_us = np.diff(time_us)
    area = step_us * ((power_w[1:] + power_w[:-1]) / 2)
    return float(np.sum(area[step_us <= _MAX_GAP_US])) / US_PER_S


def series_starts(frame: pl.DataFrame) -> IntArray:
    """Return the row at which each series of a frame sorted by key starts, shape (n_series,)."""
    if not frame.height:
        return np.empty(0, np.int64)
    changed = frame.select(pl.any_horizontal([pl.col(name).ne_missing(pl.col(name).shift()) for name in SERIES_KEY]))
    mask = changed.to_series().fill_null(True).to_numpy().copy()
    mask[0] = True
    return np.flatnonzero(mask)


def _values(frame: pl.DataFrame, name: str) -> tuple[FloatArray, BoolArray | None]:
    """Return one column (perhaps absent) as float64 with NaN for null, and the mask of present values (None: all)."""
    if name not in frame.columns:
        return np.full(frame.height, np.nan), np.zeros(frame.height, np.bool_)
    column = frame[name]
    if column.null_count() == 0:
        return column.cast(pl.Float64).to_numpy(), None
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy(), column.is_not_null().to_numpy()


def _segments(values: FloatArray, present: BoolArray | None, starts: IntArray, n: IntArray) -> dict[str, FloatArray]:
    """Return n, sum, min and max of each segment, missing values left out (min and max NaN where all are missing)."""
    if present is None:
        return {
            "n": n.astype(np.float64),
            "sum": np.add.reduceat(values, starts),
            "min": np.minimum.reduceat(values, starts),
            "max": np.maximum.reduceat(values, starts),
        }
    return {
        "n": np.add.reduceat(present.astype(np.float64), starts),
        "sum": np.add.reduceat(np.where(present, values, 0.0), starts),
        "min": np.fmin.reduceat(values, starts),
        "max": np.fmax.reduceat(values, starts),
    }


def _whole(values: FloatArray, dtype: pl.DataType) -> pl.Series:
    return pl.Series(values).fill_nan(None).cast(dtype)


def summarise_pieces(frame: pl.DataFrame, starts: IntArray) -> pl.DataFrame:
    """Return one row a series: its key and the columns of `PIECE_SCHEMA`.

    Parameters
    ----------
    frame : rows of gpu_samples sorted by key
    starts : as from `series_starts`
    """
    if not len(starts):
        return pl.DataFrame(schema={**{k: frame.schema[k] for k in SERIES_KEY}, **PIECE_SCHEMA})
    n = np.diff(starts, append=frame.height)
    ends = starts + n - 1
    time_us = frame["time"].cast(pl.Int64).to_numpy()
    step_us = np.diff(time_us, prepend=time_us[0])
    step_us[starts] = 0
    longest_us = np.maximum.reduceat(step_us, starts)
    gap = step_us > _MAX_GAP_US
    power, present = _values(frame, "power_w")
    util = _segments(*_values(frame, "gpu_util_pct"), starts, n)
    used, used_present = _values(frame, "memory_used_mib")
    free, _ = _values(frame, "memory_free_mib")
    temp = _segments(*_values(frame, "gpu_temp_c"), starts, n)
    columns: dict[str, pl.Series] = {
        "rows": pl.Series(n),
        "first_time": pl.Series(time_us[starts]).cast(TIME),
        "last_time": pl.Series(time_us[ends]).cast(TIME),
        "gaps": pl.Series(np.add.reduceat(gap.astype(np.int64), starts)),
        "clock_jumps": pl.Series(np.add.reduceat((step_us > _CLOCK_JUMP_US).astype(np.int64), starts)),
        "longest_gap_s": pl.Series(np.where(longest_us > _MAX_GAP_US, longest_us / US_PER_S, 0.0)),
        "gpu_util_sum": pl.Series(util["sum"]),
        "gpu_util_n": pl.Series(util["n"]).cast(pl.Int64),
        "memory_used_max_mib": _whole(_segments(used, used_present, starts, n)["max"], pl.UInt32()),
        "memory_total_max_mib": _whole(np.fmax.reduceat(used + free, starts), pl.UInt32()),
        "gpu_temp_max_c": _whole(temp["max"], pl.Int16()),
        **_integrate(time_us, power, present, starts, n),
        **_counter(frame, starts, ends),
    }
    keys = frame.select(SERIES_KEY)[starts.tolist()]
    summary = pl.DataFrame({name: columns[name].cast(dtype) for name, dtype in PIECE_SCHEMA.items()})
    return pl.concat([keys, summary], how="horizontal")


def _integrate(
    time_us: IntArray, power: FloatArray, present: BoolArray | None, starts: IntArray, n: IntArray
) -> dict[str, pl.Series]:
    """Return energy, coverage, peak, and the first and last power of each segment; samples without power left out."""
    segment = np.repeat(np.arange(len(starts)), n)
    if present is not None:
        time_us, power, segment = time_us[present], power[present], segment[present]
    count = np.bincount(segment, minlength=len(starts))
    first = np.concatenate(([0], np.cumsum(count)))[:-1]
    step_us = np.diff(time_us, prepend=time_us[:1]).astype(np.float64)
    mean_w = np.empty_like(power)
    mean_w[:1], mean_w[1:] = 0.0, (power[1:] + power[:-1]) / 2
    joined = (step_us <= _MAX_GAP_US) & (np.diff(segment, prepend=-1) == 0)
    step_s = np.where(joined, step_us, 0.0) / US_PER_S
    some = count > 0
    at_first, at_last = first[some], (first + count - 1)[some]
    peak = np.full(len(starts), np.nan)
    edges = {name: np.full(len(starts), np.nan) for name in ("power_first_w", "power_last_w")}
    times = {name: np.full(len(starts), np.nan) for name in ("power_first_time", "power_last_time")}
    if some.any():
        peak[some] = np.maximum.reduceat(power, at_first)
        edges["power_first_w"][some], edges["power_last_w"][some] = power[at_first], power[at_last]
        times["power_first_time"][some], times["power_last_time"][some] = time_us[at_first], time_us[at_last]
    return {
        "covered_s": pl.Series(np.bincount(segment, weights=step_s, minlength=len(starts))),
        "energy_j": pl.Series(np.bincount(segment, weights=step_s * mean_w, minlength=len(starts))),
        "power_max_w": _whole(peak, pl.Float32()),
        **{name: pl.Series(values).fill_nan(None) for name, values in edges.items()},
        **{name: pl.Series(v).fill_nan(None).cast(pl.Int64).cast(TIME) for name, v in times.items()},
    }


def _counter(frame: pl.DataFrame, starts: IntArray, ends: IntArray) -> dict[str, pl.Series]:
    """Return the energy counter's first and last value and its gain; a step back is a driver's reset and adds nothing."""
    names = ("counter_first_j", "counter_last_j", "counter_gain_j")
    column = frame["energy_counter_j"] if "energy_counter_j" in frame.columns else None
    if column is None or column.null_count() == len(column):
        return {name: pl.Series([None] * len(starts), dtype=pl.Float64) for name in names}
    segment = np.repeat(np.arange(len(starts)), np.append(starts[1:], frame.height) - starts)
    table = pl.DataFrame({"segment": segment, "j": column}).drop_nulls()
    gain = pl.col("j").diff().clip(lower_bound=0).sum()
    found = table.group_by("segment").agg(
        pl.col("j").first().alias(names[0]), pl.col("j").last().alias(names[1]), gain.alias(names[2])
    )
    every = pl.DataFrame({"segment": np.arange(len(starts))}).join(found, on="segment", how="left")
    ordered = every.sort("segment")
    return {name: ordered[name] for name in names}


def summarise_minutes(frame: pl.DataFrame, starts: IntArray) -> pl.DataFrame:
    """Return rows of ``gpu_minutes`` for a frame sorted by key; a minute cut by the frame's edge is a part of it."""
    if not len(starts):
        return GPU_MINUTES.empty()
    minute = frame["time"].cast(pl.Int64).to_numpy() // _MINUTE_US
    new = np.diff(minute, prepend=minute[0] - 1) != 0
    new[starts] = True
    at = np.flatnonzero(new)
    n = np.diff(at, append=frame.height)
    power = _segments(*_values(frame, "power_w"), at, n)
    util = _segments(*_values(frame, "gpu_util_pct"), at, n)
    memory_util = _segments(*_values(frame, "memory_util_pct"), at, n)
    temp = _segments(*_values(frame, "gpu_temp_c"), at, n)
    used = _segments(*_values(frame, "memory_used_mib"), at, n)
    columns: dict[str, object] = {
        "minute": pl.Series(minute[at] * _MINUTE_US).cast(TIME),
        "n": n,
        "n_power": power["n"],
        "power_mean_w": _mean(power),
        "power_min_w": power["min"],
        "power_max_w": power["max"],
        "n_gpu_util": util["n"],
        "gpu_util_mean_pct": _mean(util),
        "gpu_util_max_pct": util["max"],
        "n_memory_util": memory_util["n"],
        "memory_util_mean_pct": _mean(memory_util),
        "memory_used_max_mib": used["max"],
        "n_gpu_temp": temp["n"],
        "gpu_temp_mean_c": _mean(temp),
        "gpu_temp_max_c": temp["max"],
    }
    keys = frame.select(SERIES_KEY)[at.tolist()]
    floats = [name for name, v in columns.items() if isinstance(v, np.ndarray) and v.dtype == np.float64]
    table = pl.concat([keys, pl.DataFrame(columns)], how="horizontal").with_columns(pl.col(floats).fill_nan(None))
    return GPU_MINUTES.conform(table)


def _mean(segments: dict[str, FloatArray]) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return segments["sum"] / segments["n"]


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


def join_pieces(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return one row a series from the summaries of its pieces: sums, extremes, and the seams between pieces.

    ``pieces`` has the series key, the columns of `PIECE_SCHEMA`, and pieces of one series do not overlap in time.
    """
    key = list(SERIES_KEY)
    ordered = pieces.sort([*key, "first_time"], nulls_last=False)
    previous = {
        name: pl.col(name).shift().over(key)
        for name in ("last_time", "power_last_time", "power_last_w", "counter_last_j")
    }
    step_s = (pl.col("first_time") - previous["last_time"]).dt.total_microseconds() / US_PER_S
    power_step_s = (pl.col("power_first_time") - previous["power_last_time"]).dt.total_microseconds() / US_PER_S
    joined = (power_step_s <= MAX_GAP_S).fill_null(False)
    seam_w = (pl.col("power_first_w") + previous["power_last_w"]) / 2
    seamed = ordered.with_columns(
        pl.col("covered_s") + pl.when(joined).then(power_step_s).otherwise(0.0),
        pl.col("energy_j") + pl.when(joined).then(power_step_s * seam_w).otherwise(0.0),
        pl.col("gaps") + (step_s > MAX_GAP_S).fill_null(False).cast(pl.Int64),
        pl.col("clock_jumps") + (step_s > CLOCK_JUMP_S).fill_null(False).cast(pl.Int64),
        pl.max_horizontal("longest_gap_s", pl.when(step_s > MAX_GAP_S).then(step_s).otherwise(0.0)).alias(
            "longest_gap_s"
        ),
        pl.col("counter_gain_j") + (pl.col("counter_first_j") - previous["counter_last_j"]).clip(0).fill_null(0.0),
    )
    sums = ["rows", "covered_s", "energy_j", "gaps", "clock_jumps", "gpu_util_sum", "gpu_util_n"]
    extremes = ["longest_gap_s", "power_max_w", "memory_used_max_mib", "memory_total_max_mib", "gpu_temp_max_c"]
    return seamed.group_by(key, maintain_order=True).agg(
        pl.col("first_time").min(),
        pl.col("last_time").max(),
        *[pl.col(name).sum() for name in sums],
        *[pl.col(name).max() for name in extremes],
        pl.when(pl.col("counter_gain_j").count() > 0).then(pl.col("counter_gain_j").sum()).alias("counter_gain_j"),
        (pl.col("power_max_w").count() > 0).alias("has_power"),
    )


def summarise_jobs(series: pl.DataFrame, jobs: pl.DataFrame) -> pl.DataFrame:
    """Return rows of ``job_stats`` from `join_pieces`' rows and the scheduler's jobs (last attempt counts)."""
    run = jobs.sort("job_id", "attempt").unique("job_id", keep="last", maintain_order=True)
    run_s = (pl.col("end_time") - pl.col("start_time")).dt.total_microseconds() / US_PER_S
    known = run.select("job_id", run_s.alias("run_s"))
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
            pl.col("power_max_w").max(),
            pl.when(total_n > 0).then(pl.col("gpu_util_sum").sum() / total_n).alias("gpu_util_mean_pct"),
            pl.col("memory_used_max_mib").max(),
            pl.col("gpu_temp_max_c").max(),
        )
        .join(known, on="job_id", how="left")
    )
    span_s = (pl.col("last_time") - pl.col("first_time")).dt.total_microseconds() / US_PER_S
    due_s = pl.when(pl.col("run_s") > 0).then(pl.col("run_s")).otherwise(span_s) * pl.col("gpus")
    return JOB_STATS.conform(
        by_job.with_columns(
            pl.when(due_s > 0).then((pl.col("covered_gpu_s") / due_s).clip(0, 1)).alias("coverage"),
            pl.when(pl.col("covered_gpu_s") > 0)
            .then(pl.col("energy_j") / pl.col("covered_gpu_s"))
            .alias("power_mean_w"),
        )
    ).sort("job_id")
