"""Series become windows of equal length: pure, on samples as irregular as they come.

A *series* is one (job_id, node, gpu_index): two GPUs of one job, or two nodes with the same index, are never merged.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.readings import Cut, even_readings, first_readings, reading_rates
from ingest.schemas import GPU_SAMPLES, SERIES_KEY, TIME
from ingest.units import US_PER_S

FloatArray = npt.NDArray[np.floating]

CHALLENGE_CHANNELS = (
    "gpu_util_pct",
    "memory_util_pct",
    "memory_free_mib",
    "memory_used_mib",
    "gpu_temp_c",
    "memory_temp_c",
    "power_w",
)
"""The seven sensors of the Workload Classification Challenge in its order (Tang et al. 2022, arXiv 2204.05839)."""

PLACES = ("start", "middle", "random", "slide")
"""Where windows lie: one at the start, in the middle or at a random place of each series; or one after the other."""

LEAST_S = 0.001
MOST_S = 1e9
"""A length or stride in seconds is from here to there: a millisecond to 31 years."""

MOST_SAMPLES = 10_000_000
"""A window has no more samples than this."""

_WINDOW_SCHEMA = pl.Schema(
    {
        "window_id": pl.Int64(),
        **{name: GPU_SAMPLES.columns[name] for name in SERIES_KEY},
        "start": TIME,
    }
)
_SHORT_SCHEMA = pl.Schema(
    {
        **{name: GPU_SAMPLES.columns[name] for name in SERIES_KEY},
        "duration_s": pl.Float64(),
        "samples": pl.Int64(),
        "reason": pl.String(),
    }
)
_REFUSED_SCHEMA = pl.Schema(
    {
        **{name: GPU_SAMPLES.columns[name] for name in SERIES_KEY},
        "start": TIME,
        "reason": pl.String(),
    }
)


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """How long a window is, where it lies in its series, and how many samples it holds.

    Every window holds the first ``n_samples`` readings of its ``seconds``, however many more there are: an array wants
    one length, and a length that depends on which other jobs stand beside would make a window something fitted. Nine
    samples a second is the challenge's own floor, whence its 540 samples a minute.

    ``max_gap_s`` refuses a window in which two readings, or a reading and the window's edge, are farther apart.
    With ``even`` the samples are those of an even grid, from the window's start, on straight lines between readings.
    ``stride_s`` is from one sliding window's start to the next, a whole window unless given. A ``random`` place depends
    on ``seed`` and on the series alone, not on what else is cut.

    Examples
    --------
    >>> WindowSpec(60).n_samples
    540
    """

    seconds: float
    place: str = "middle"
    samples_per_s: float = 9.0
    stride_s: float | None = None
    max_gap_s: float | None = None
    even: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not LEAST_S <= self.seconds <= MOST_S:
            raise ValueError(f"seconds is {self.seconds}; give {LEAST_S:g} to {MOST_S:g} (the challenge uses 60)")
        if self.place not in PLACES:
            raise ValueError(f"place is {self.place!r}; give one of {', '.join(PLACES)}")
        if not 0 < self.samples_per_s < math.inf:
            raise ValueError(f"samples_per_s is {self.samples_per_s}; give a rate above 0 (the challenge uses 9)")
        if self.seconds * self.samples_per_s > MOST_SAMPLES:
            raise ValueError(
                f"seconds x samples_per_s is {self.seconds:g} x {self.samples_per_s:g}, so a window would have "
                f"{self.seconds * self.samples_per_s:.3g} samples; give less of either, for up to {MOST_SAMPLES:,}"
            )
        if self.stride_s is not None and not LEAST_S <= self.stride_s <= MOST_S:
            raise ValueError(f"stride_s is {self.stride_s}; give {LEAST_S:g} to {MOST_S:g}, or None")
        if self.max_gap_s is not None and not 0 < self.max_gap_s <= MOST_S:
            raise ValueError(f"max_gap_s is {self.max_gap_s}; give a length above 0, up to {MOST_S:g}, or None")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give 0 or more")
        if self.stride_s is not None and self.place != "slide":
            raise ValueError(f"stride_s is {self.stride_s}, but place is {self.place!r}; only sliding windows have one")
        if self.even and self.max_gap_s is None:
            raise ValueError("an even grid needs max_gap_s: over how long a gap may a straight line be drawn?")

    @property
    def n_samples(self) -> int:
        """The samples of one window, rounded up."""
        return max(1, math.ceil(self.seconds * self.samples_per_s - 1e-9))


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows, the table that says whose they are, and the series that gave none.

    ``values`` has shape (n_windows, n_channels, n_samples), float32, missing readings NaN; its rows follow ``table``
    (window_id, job_id, node, gpu_index, start). ``samples_per_s`` is how fast the samples of each window were read,
    NaN where it holds one only: above the rate asked for where a window is full before its seconds are over. ``short``
    has one row for each series without a window: its duration, its samples, and why (``no_job``,
    ``shorter_than_window``, ``too_few_samples``, ``gap``). ``refused`` has one row for each place where a window of a
    long enough series was refused (job_id, node, gpu_index, start, reason), whether others of that series stand or not.
    """

    values: npt.NDArray[np.float32]
    channels: tuple[str, ...]
    table: pl.DataFrame
    samples_per_s: npt.NDArray[np.float64]
    short: pl.DataFrame
    refused: pl.DataFrame


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A place where a series has no window, and why."""

    series: int
    start_us: int
    reason: str


def cut_windows(samples: pl.DataFrame, spec: WindowSpec, channels: Sequence[str] = CHALLENGE_CHANNELS) -> Windows:
    """Cut windows out of each series of ``samples``; a series that gives none is reported in ``short``.

    Parameters
    ----------
    samples : frame with job_id, node, gpu_index, time and the channels, in any order of rows
    """
    ordered, series = _order(samples, channels)
    time_us = ordered["time"].to_physical().to_numpy()
    window_us = round(spec.seconds * US_PER_S)
    kept: list[Cut] = []
    refused: list[_Refusal] = []
    reasons: dict[int, str] = {}
    for index, (job_id, node, gpu_index, first, count) in enumerate(series.iter_rows()):
        times = time_us[first : first + count]
        if job_id is None:
            reasons[index] = "no_job"
            continue
        if times[-1] - times[0] < window_us:
            reasons[index] = "shorter_than_window"
            continue
        before = len(kept), len(refused)
        for offset_us in _offsets_us(spec, int(times[-1] - times[0]), f"{job_id}/{node}/{gpu_index}"):
            start_us = int(times[0]) + offset_us
            begin, end = np.searchsorted(times, [start_us, start_us + window_us])
            why = _reason(spec, times, start_us, int(begin), int(end))
            if why:
                refused.append(_Refusal(index, start_us, why))
            else:
                kept.append(Cut(index, start_us, first + int(begin), first + int(end)))
        if before[0] == len(kept):
            reasons[index] = refused[before[1]].reason
    if spec.even:
        values = even_readings(ordered, kept, spec.n_samples, spec.samples_per_s, channels)
        rate = np.full(len(kept), spec.samples_per_s)
    else:
        values = first_readings(ordered, kept, spec.n_samples, channels)
        rate = reading_rates(time_us, kept, spec.n_samples)
    return _assemble(
        values, rate, channels, series=series, kept=kept, refused=refused, reasons=reasons, time_us=time_us
    )


def window_starts_us(spec: WindowSpec, key: tuple[int, str, int], first_us: int, last_us: int) -> npt.NDArray[np.int64]:
    """Return where the windows of one series start, from the times of its first and last sample alone.

    None where the series is shorter than a window. Whether a window has samples enough is found out when it is cut.

    Parameters
    ----------
    key : job_id, node and gpu_index, on which a random place depends

    Examples
    --------
    >>> window_starts_us(WindowSpec(2, "slide"), (7, "n1", 0), 0, 5_000_000)
    array([      0, 2000000])
    """
    if last_us - first_us < round(spec.seconds * US_PER_S):
        return np.empty(0, np.int64)
    job_id, node, gpu_index = key
    offsets = _offsets_us(spec, last_us - first_us, f"{job_id}/{node}/{gpu_index}")
    return np.fromiter(offsets, np.int64) + first_us


def cut_series(
    samples: pl.DataFrame,
    starts_us: npt.NDArray[np.int64],
    spec: WindowSpec,
    channels: Sequence[str] = CHALLENGE_CHANNELS,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], list[str]]:
    """Cut one series at given starts: the windows, how fast each was read, and why a start gave none ('' if it did).

    Parameters
    ----------
    samples : frame with time and the channels, sorted by time: at least what lies in the windows, and for an even grid
        what lies no farther than ``max_gap_s`` beside them

    Returns
    -------
    array of shape (n_kept, n_channels, n_samples); samples a second, shape (n_kept,); a list of len(starts_us)
    """
    times = samples["time"].to_physical().to_numpy()
    window_us = round(spec.seconds * US_PER_S)
    begins, ends = np.searchsorted(times, starts_us), np.searchsorted(times, starts_us + window_us)
    reasons = [
        _reason(spec, times, int(start), int(begin), int(end))
        for start, begin, end in zip(starts_us, begins, ends, strict=True)
    ]
    kept = [
        Cut(0, int(start), int(begin), int(end))
        for start, begin, end, why in zip(starts_us, begins, ends, reasons, strict=True)
        if not why
    ]
    if spec.even:
        values = even_readings(samples, kept, spec.n_samples, spec.samples_per_s, channels)
        return values, np.full(len(kept), spec.samples_per_s), reasons
    rates = reading_rates(times, kept, spec.n_samples)
    return first_readings(samples, kept, spec.n_samples, channels), rates, reasons


def cut_challenge(
    samples: pl.DataFrame,
    place: str,
    channels: Sequence[str] = CHALLENGE_CHANNELS,
    *,
    seconds: float = 60.0,
    samples_per_s: float = 9.0,
    seed: int = 0,
) -> Windows:
    """Cut the windows of the Workload Classification Challenge by the rule of its authors' notebook.

    A file (one job on one node) shorter than the window is skipped, and the window lies in the file, not in the series
    of one GPU. Each GPU of a file is one trial. One with fewer than nine samples a second is dropped, and all others
    are cut to the shortest of them, so a window depends on what it is cut with. ``cut_windows`` avoids that.

    Parameters
    ----------
    samples : frame with job_id, node, gpu_index, time and the channels, in any order of rows
    place : start, middle or random; the authors gave their random ones no seed, so those cannot be had again
    """
    spec = WindowSpec(seconds, place, samples_per_s, seed=seed)
    if place == "slide":
        raise ValueError("place is 'slide'; the challenge's windows are at start, middle or random")
    ordered, series = _order(samples, channels)
    time_us = ordered["time"].to_physical().to_numpy()
    window_us = round(seconds * US_PER_S)
    ends = [(first, first + count - 1) for first, count in series.select("first", "samples").iter_rows()]
    spans: dict[tuple[int | None, str | None], tuple[int, int]] = {}
    for key, (first, last) in zip(series.select("job_id", "node").iter_rows(), ends, strict=True):
        begin_us, end_us = spans.get(key, (int(time_us[first]), int(time_us[last])))
        spans[key] = (min(begin_us, int(time_us[first])), max(end_us, int(time_us[last])))
    kept: list[Cut] = []
    refused: list[_Refusal] = []
    reasons: dict[int, str] = {}
    for index, (job_id, node, _, first, count) in enumerate(series.iter_rows()):
        begin_us, end_us = spans[job_id, node]
        if job_id is None or end_us - begin_us < window_us:
            reasons[index] = "no_job" if job_id is None else "shorter_than_window"
            continue
        start_us = begin_us + next(_offsets_us(spec, end_us - begin_us, f"{job_id}/{node}"))
        begin, end = np.searchsorted(time_us[first : first + count], [start_us, start_us + window_us])
        if end - begin < spec.n_samples:
            reasons[index] = "too_few_samples"
            refused.append(_Refusal(index, start_us, "too_few_samples"))
        else:
            kept.append(Cut(index, start_us, first + int(begin), first + int(end)))
    shortest = min((cut.end - cut.begin for cut in kept), default=spec.n_samples)
    values, rate = first_readings(ordered, kept, shortest, channels), reading_rates(time_us, kept, shortest)
    return _assemble(
        values, rate, channels, series=series, kept=kept, refused=refused, reasons=reasons, time_us=time_us
    )


def _order(samples: pl.DataFrame, channels: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the samples by series and time, and of each series its key, its first row and how many it has."""
    missing = [name for name in (*SERIES_KEY, "time", *channels) if name not in samples.columns]
    if missing:
        raise ValueError(f"samples have no column {', '.join(missing)}; read the series with these columns")
    untimed = samples["time"].null_count()
    if untimed:
        raise ValueError(
            f"{untimed} of {samples.height} samples have no time; leave them out, or ask where they are from"
        )
    ordered = samples.select(*SERIES_KEY, "time", *channels).sort(*SERIES_KEY, "time", maintain_order=True)
    series = (
        ordered.with_row_index("row")
        .group_by(*SERIES_KEY, maintain_order=True)
        .agg(first=pl.col("row").first().cast(pl.Int64), samples=pl.len().cast(pl.Int64))
    )
    return ordered, series


def _offsets_us(spec: WindowSpec, run_us: int, key: str) -> Iterator[int]:
    """The starts of the windows, from the start of a run that is no shorter than one."""
    window_us = round(spec.seconds * US_PER_S)
    room_us = run_us - window_us
    if spec.place == "slide":
        stride_us = round((spec.stride_s or spec.seconds) * US_PER_S)
        yield from range(0, room_us + 1, stride_us)
    elif spec.place == "random":
        yield int(np.random.default_rng([spec.seed, zlib.crc32(key.encode())]).integers(0, room_us + 1))
    else:
        yield room_us // 2 if spec.place == "middle" else 0


def _reason(spec: WindowSpec, times: npt.NDArray[np.int64], start_us: int, begin: int, end: int) -> str:
    """Why the readings from ``begin`` to ``end`` are no window; an empty string where they are one."""
    if end - begin < (1 if spec.even else spec.n_samples):
        return "too_few_samples"
    if spec.max_gap_s is None:
        return ""
    end_us = start_us + round(spec.seconds * US_PER_S)
    if spec.even:  # a straight line needs the readings on both sides of the edges
        begin, end = begin - int(times[begin] > start_us), end + 1
        if begin < 0 or end > len(times):  # the neighbour is too far away to have been read
            return "gap"
    edges_us = [] if spec.even else [[start_us], [end_us]]
    inner = times[begin:end]
    steps = np.diff(np.concatenate([*edges_us[:1], inner, *edges_us[1:]]))
    return "gap" if steps.max(initial=0) > spec.max_gap_s * US_PER_S else ""


def _assemble(
    values: npt.NDArray[np.float32],
    samples_per_s: npt.NDArray[np.float64],
    channels: Sequence[str],
    *,
    series: pl.DataFrame,
    kept: Sequence[Cut],
    refused: Sequence[_Refusal],
    reasons: dict[int, str],
    time_us: npt.NDArray[np.int64],
) -> Windows:
    """Put the windows beside the tables that say whose they are and which series gave none."""
    table = (
        series[[cut.series for cut in kept]]
        .select(
            pl.int_range(len(kept), dtype=pl.Int64).alias("window_id"),
            *SERIES_KEY,
            pl.Series("start", [cut.start_us for cut in kept], dtype=pl.Int64).cast(TIME),
        )
        .cast(_WINDOW_SCHEMA)
    )
    left = series[list(reasons)]
    first, count = left["first"].to_numpy(), left["samples"].to_numpy()
    duration_s = (time_us[first + count - 1] - time_us[first]) / US_PER_S if len(left) else np.empty(0)
    short = left.select(
        *SERIES_KEY,
        pl.Series("duration_s", duration_s, dtype=pl.Float64),
        "samples",
        pl.Series("reason", list(reasons.values()), dtype=pl.String),
    ).cast(_SHORT_SCHEMA)
    places = (
        series[[place.series for place in refused]]
        .select(
            *SERIES_KEY,
            pl.Series("start", [place.start_us for place in refused], dtype=pl.Int64).cast(TIME),
            pl.Series("reason", [place.reason for place in refused], dtype=pl.String),
        )
        .cast(_REFUSED_SCHEMA)
    )
    return Windows(
        values=values, channels=tuple(channels), table=table, samples_per_s=samples_per_s, short=short, refused=places
    )
