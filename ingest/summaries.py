"""One batch of GPU samples summed up: each piece of a series, and each minute.

Pure: arrays and frames in, frames out. A *series* is one GPU of one job on one node; its samples may lie in several
pieces (a file longer than one batch), whose summaries `ingest.rollup` adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ingest.quality import CLOCK_JUMP_S, MAX_GAP_S
from ingest.schemas import GPU_MINUTES, SERIES_KEY, TIME
from ingest.units import S_PER_MINUTE, US_PER_S

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
AnyArray = npt.NDArray[Any]

_MINUTE_US = S_PER_MINUTE * US_PER_S
_MAX_GAP_US = int(MAX_GAP_S * US_PER_S)
_MAX_STRETCH_STEP_US = 2**27  # 134 s; two such steps differ by less than the 28 bits that fastparquet reads
_CLOCK_JUMP_US = int(CLOCK_JUMP_S * US_PER_S)

_POWER_EDGES = ("power_first_w", "power_last_w", "power_first_time", "power_last_time")

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
    "power_gaps": pl.Int64(),
    "both_first_j": pl.Float64(),
    "both_last_j": pl.Float64(),
    "both_first_after_j": pl.Float64(),
    "both_last_after_j": pl.Float64(),
    "both_first_after_gaps": pl.Int64(),
    "both_last_after_gaps": pl.Int64(),
    "both_energy_j": pl.Float64(),
    "both_counter_j": pl.Float64(),
}
"""Columns of one piece's summary, which the manifest keeps for each piece of each series.

``both_*`` is energy by integral and by counter over the same time, from one reading of the counter (by a sample that
has power) to the next: inside the piece ``both_energy_j`` and ``both_counter_j``; for what spans pieces, the first and
the last reading, how much energy the integral has from the piece's first power up to them (``after_j``), and how many
steps between powers up to there, and in the whole piece (``power_gaps``), are gaps.
"""


@dataclass(frozen=True, slots=True)
class Segments:
    """Statistics of one column over consecutive stretches of rows, arrays of shape (n_segments,)."""

    n: FloatArray
    total: FloatArray
    least: FloatArray
    greatest: FloatArray

    @property
    def mean(self) -> FloatArray:
        """The mean of each segment, NaN where nothing is there."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.total / self.n

    def joined(self, at: IntArray) -> Segments:
        """Return the statistics of longer stretches, which begin at the segments ``at``."""
        return Segments(
            np.add.reduceat(self.n, at),
            np.add.reduceat(self.total, at),
            np.fmin.reduceat(self.least, at),
            np.fmax.reduceat(self.greatest, at),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A batch summed up, as arrays; `pieces_frame` and `minutes_frame` make tables of many.

    ``keys`` has one row a series; ``pieces`` has arrays of that length by column of `PIECE_SCHEMA`; ``minutes`` has one
    entry a minute of a series, ``series`` being the row of its key.
    """

    keys: pl.DataFrame
    pieces: dict[str, AnyArray]
    minutes: dict[str, AnyArray]


def whole_numbers(column: pl.Series) -> IntArray:
    """Return integers, times (microseconds) or categories (their codes) as int64; null is -1."""
    if isinstance(column.dtype, pl.Enum | pl.Categorical):
        column = column.to_physical()
    column = column.cast(pl.Int64)
    return (column.fill_null(-1) if column.null_count() else column).to_numpy()


def series_starts(frame: pl.DataFrame) -> IntArray:
    """Return the row at which each series of a frame sorted by key starts, shape (n_series,)."""
    if not frame.height:
        return np.empty(0, np.int64)
    new = np.zeros(frame.height, np.bool_)
    new[0] = True
    for name in SERIES_KEY:
        column = frame[name]
        if column.dtype == pl.String:
            new |= column.ne_missing(column.shift()).to_numpy()
        else:
            codes = whole_numbers(column)
            new[1:] |= codes[1:] != codes[:-1]
    return np.flatnonzero(new)


def stretch_starts(frame: pl.DataFrame, starts: IntArray) -> IntArray:
    """Return where stretches start: at each series, and after each step of over `_MAX_STRETCH_STEP_US`."""
    time_us = whole_numbers(frame["time"])
    far = np.flatnonzero(time_us[1:] - time_us[:-1] > _MAX_STRETCH_STEP_US) + 1
    return np.union1d(starts, far) if len(far) else starts


def _values(frame: pl.DataFrame, name: str) -> tuple[AnyArray, BoolArray | None]:
    """Return one column (perhaps absent) and the mask of present values (None: all); with a mask, float64 and NaN."""
    if name not in frame.columns:
        return np.full(frame.height, np.nan), np.zeros(frame.height, np.bool_)
    column = frame[name]
    if column.null_count() == 0:
        return column.to_numpy(), None
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy(), column.is_not_null().to_numpy()


def _segments(values: AnyArray, present: BoolArray | None, starts: IntArray, n: IntArray) -> Segments:
    """Return n, sum, least and greatest of each segment, missing values left out (NaN extremes if there are none)."""
    if present is None:
        return Segments(
            n.astype(np.float64),
            np.add.reduceat(values, starts, dtype=np.float64),
            np.minimum.reduceat(values, starts).astype(np.float64),
            np.maximum.reduceat(values, starts).astype(np.float64),
        )
    return Segments(
        np.add.reduceat(present, starts, dtype=np.float64),
        np.add.reduceat(np.where(present, values, 0.0), starts),
        np.fmin.reduceat(values, starts),
        np.fmax.reduceat(values, starts),
    )


def summarise(frame: pl.DataFrame, starts: IntArray) -> Summary:
    """Return the summary of rows of gpu_samples sorted by key, at least one.

    Parameters
    ----------
    starts : as from `series_starts`

    Notes
    -----
    A minute that is cut by the frame's edge is a part of that minute: `ingest.rollup.join_minutes` adds the parts up.
    """
    time_us = whole_numbers(frame["time"])
    minute = time_us // _MINUTE_US
    new = np.empty(len(minute), np.bool_)
    np.not_equal(minute[1:], minute[:-1], out=new[1:])
    new[starts] = True
    at = np.flatnonzero(new)
    n = np.diff(at, append=frame.height)
    columns = ("power_w", "gpu_util_pct", "memory_util_pct", "gpu_temp_c", "memory_used_mib")
    stats = {name: _segments(*_values(frame, name), at, n) for name in columns}
    of_series = np.searchsorted(at, starts)
    whole = {name: segments.joined(of_series) for name, segments in stats.items()}
    minutes = {
        "series": np.repeat(np.arange(len(starts)), np.diff(of_series, append=len(at))),
        "minute": minute[at] * _MINUTE_US,
        "n": n,
        **_minute_columns(stats),
    }
    keys = frame.select(SERIES_KEY)[starts.tolist()].with_columns(pl.col("node").cast(pl.String))
    return Summary(keys, _pieces(frame, starts, time_us, whole), minutes)


def _minute_columns(stats: dict[str, Segments]) -> dict[str, AnyArray]:
    power, util, memory_util = stats["power_w"], stats["gpu_util_pct"], stats["memory_util_pct"]
    temp, used = stats["gpu_temp_c"], stats["memory_used_mib"]
    return {
        "n_power": power.n,
        "power_mean_w": power.mean,
        "power_min_w": power.least,
        "power_max_w": power.greatest,
        "n_gpu_util": util.n,
        "gpu_util_mean_pct": util.mean,
        "gpu_util_max_pct": util.greatest,
        "n_memory_util": memory_util.n,
        "memory_util_mean_pct": memory_util.mean,
        "memory_used_max_mib": used.greatest,
        "n_gpu_temp": temp.n,
        "gpu_temp_mean_c": temp.mean,
        "gpu_temp_max_c": temp.greatest,
    }


def _pieces(
    frame: pl.DataFrame, starts: IntArray, time_us: IntArray, whole: dict[str, Segments]
) -> dict[str, AnyArray]:
    n = np.diff(starts, append=frame.height)
    step_us = np.empty_like(time_us)
    np.subtract(time_us[1:], time_us[:-1], out=step_us[1:])
    step_us[starts] = 0
    longest_us = np.maximum.reduceat(step_us, starts)
    gaps = jumps = np.zeros(len(starts), np.int64)
    if longest_us.max() > _MAX_GAP_US:
        gaps = np.add.reduceat(step_us > _MAX_GAP_US, starts, dtype=np.int64)
        jumps = np.add.reduceat(step_us > _CLOCK_JUMP_US, starts, dtype=np.int64)
    return {
        "rows": n,
        "first_time": time_us[starts],
        "last_time": time_us[starts + n - 1],
        "gaps": gaps,
        "clock_jumps": jumps,
        "longest_gap_s": np.where(longest_us > _MAX_GAP_US, longest_us / US_PER_S, 0.0),
        "gpu_util_sum": whole["gpu_util_pct"].total,
        "gpu_util_n": whole["gpu_util_pct"].n,
        "power_max_w": whole["power_w"].greatest,
        "memory_used_max_mib": whole["memory_used_mib"].greatest,
        "memory_total_max_mib": _total_memory(frame, starts, n),
        "gpu_temp_max_c": whole["gpu_temp_c"].greatest,
        **_integrate(frame, time_us, step_us, starts, n),
        **_counter(frame, starts),
        **_energy_twice(frame, starts),
    }


def _total_memory(frame: pl.DataFrame, starts: IntArray, n: IntArray) -> FloatArray:
    """Return the largest free + used memory of each series, NaN where one of them is missing."""
    if not {"memory_used_mib", "memory_free_mib"} <= set(frame.columns):
        return np.full(len(starts), np.nan)
    total = (frame["memory_used_mib"] + frame["memory_free_mib"]).rename("total").to_frame()
    return _segments(*_values(total, "total"), starts, n).greatest


def _integrate(
    frame: pl.DataFrame, time_us: IntArray, step_us: IntArray, starts: IntArray, n: IntArray
) -> dict[str, AnyArray]:
    """Return energy, covered time, gaps, first and last power of each series; samples without power are left out."""
    power, present = _values(frame, "power_w")
    power = power.astype(np.float64, copy=False)
    first, count = starts, n
    some = np.ones(len(starts), np.bool_)
    if present is not None:
        segment = np.repeat(np.arange(len(starts)), n)[present]
        time_us, power = time_us[present], power[present]
        count = np.bincount(segment, minlength=len(starts))
        some = count > 0
        first = np.concatenate(([0], np.cumsum(count)))[:-1][some]
        step_us = np.diff(time_us, prepend=time_us[:1])
        step_us[first] = 0
        count = count[some]
    found = {name: np.full(len(starts), np.nan) for name in _POWER_EDGES}
    found |= {name: np.zeros(len(starts)) for name in ("covered_s", "energy_j", "power_gaps")}
    if some.any():
        last = first + count - 1
        step_s = step_us / US_PER_S
        is_gap = step_us > _MAX_GAP_US
        step_s[is_gap] = 0.0
        if is_gap.any():
            found["power_gaps"][some] = np.add.reduceat(is_gap, first, dtype=np.float64)
        area = np.empty_like(power)
        area[0] = 0.0
        np.add(power[1:], power[:-1], out=area[1:])
        area *= step_s
        found["covered_s"][some] = np.add.reduceat(step_s, first)
        found["energy_j"][some] = np.add.reduceat(area, first) / 2
        found["power_first_w"][some], found["power_last_w"][some] = power[first], power[last]
        found["power_first_time"][some], found["power_last_time"][some] = time_us[first], time_us[last]
    return found


def _counter(frame: pl.DataFrame, starts: IntArray) -> dict[str, AnyArray]:
    """Return the energy counter's first and last value and gain; a step back is a driver's reset and adds nothing."""
    names = ("counter_first_j", "counter_last_j", "counter_gain_j")
    column = frame["energy_counter_j"] if "energy_counter_j" in frame.columns else None
    if column is None or column.null_count() == len(column):
        return {name: np.full(len(starts), np.nan) for name in names}
    segment = np.repeat(np.arange(len(starts)), np.append(starts[1:], frame.height) - starts)
    table = pl.DataFrame({"segment": segment, "j": column}).drop_nulls()
    gain = pl.col("j").diff().clip(lower_bound=0).sum()
    found = table.group_by("segment").agg(
        pl.col("j").first().alias(names[0]), pl.col("j").last().alias(names[1]), gain.alias(names[2])
    )
    every = pl.DataFrame({"segment": np.arange(len(starts))}).join(found, on="segment", how="left")
    ordered = every.sort("segment")
    return {name: ordered[name].fill_null(float("nan")).to_numpy() for name in names}


def _energy_twice(frame: pl.DataFrame, starts: IntArray) -> dict[str, AnyArray]:
    """Return the columns ``both_*`` of each series: energy by integral and by counter from one reading to the next.

    A pair of readings counts if no step between powers is a gap between them, and the counter did not step back.
    """
    names = [name for name in PIECE_SCHEMA if name.startswith("both_")]
    power, counter = (frame[name] if name in frame.columns else None for name in ("power_w", "energy_counter_j"))
    if power is None or counter is None or counter.null_count() == len(counter):
        return {name: np.full(len(starts), np.nan) for name in names}
    segment = np.repeat(np.arange(len(starts)), np.append(starts[1:], frame.height) - starts)
    rows = pl.DataFrame({"segment": segment, "t": whole_numbers(frame["time"]), "w": power, "j": counter})
    rows = rows.filter(pl.col("w").is_not_null()).with_columns(pl.col("w").cast(pl.Float64))
    step_us = pl.col("t").diff().over("segment").fill_null(0)
    area = step_us / US_PER_S * (pl.col("w") + pl.col("w").shift().over("segment")) / 2
    readings = rows.with_columns(
        pl.when(step_us <= _MAX_GAP_US).then(area).fill_null(0.0).cum_sum().over("segment").alias("after_j"),
        (step_us > _MAX_GAP_US).cast(pl.Int64).cum_sum().over("segment").alias("after_gaps"),
    ).filter(pl.col("j").is_not_null())
    rise_j, energy_j, gaps = (pl.col(name).diff().over("segment") for name in ("j", "after_j", "after_gaps"))
    counts = ((gaps == 0) & (rise_j >= 0)).fill_null(False)
    of_series = (
        readings.with_columns(rise_j=pl.when(counts).then(rise_j), energy_j=pl.when(counts).then(energy_j))
        .group_by("segment")
        .agg(
            *[pl.col(name).first().name.prefix("first_") for name in ("j", "after_j", "after_gaps")],
            *[pl.col(name).last().name.prefix("last_") for name in ("j", "after_j", "after_gaps")],
            pl.col("energy_j", "rise_j").sum().name.replace("rise_j", "counter_j"),
        )
    )
    every = pl.DataFrame({"segment": np.arange(len(starts))}).join(of_series, on="segment", how="left").sort("segment")
    own = every.drop("segment").select(pl.all().name.prefix("both_").cast(pl.Float64).fill_null(float("nan")))
    return {name: own[name].to_numpy() for name in names}


def pieces_frame(summaries: Sequence[Summary]) -> pl.DataFrame:
    """Return the pieces of all summaries: the series key and the columns of `PIECE_SCHEMA`."""
    keys = pl.concat([summary.keys for summary in summaries])
    return pl.concat([keys, _table([s.pieces for s in summaries], PIECE_SCHEMA)], how="horizontal")


def minutes_frame(summaries: Sequence[Summary]) -> pl.DataFrame:
    """Return rows of ``gpu_minutes`` of all summaries, parts of a minute not yet joined."""
    keys = pl.concat([summary.keys for summary in summaries])
    before = np.cumsum([0, *(summary.keys.height for summary in summaries)])[:-1]
    series = np.concatenate([s.minutes["series"] + n for s, n in zip(summaries, before, strict=True)])
    schema = {name: dtype for name, dtype in GPU_MINUTES.columns.items() if name not in SERIES_KEY}
    table = _table([s.minutes for s in summaries], schema)
    return GPU_MINUTES.conform(pl.concat([keys[pl.Series(series)], table], how="horizontal"))


def _table(arrays: Sequence[dict[str, AnyArray]], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Return arrays of one column after another as typed columns; NaN is null, times are in microseconds."""
    columns = {name: np.concatenate([a[name] for a in arrays]) for name in schema}
    floats = [name for name, values in columns.items() if values.dtype.kind == "f"]
    frame = pl.DataFrame(columns).with_columns(pl.col(floats).fill_nan(None))
    return frame.select(
        [pl.col(n).cast(pl.Int64).cast(TIME) if d == TIME else pl.col(n).cast(d) for n, d in schema.items()]
    )
