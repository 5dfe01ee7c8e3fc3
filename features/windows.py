"""Series become windows of equal length: pure, one window for each series, on samples as irregular as they come.

A *series* is one (job_id, node, gpu_index): two GPUs of one job, or two nodes with the same index, are never merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

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

PLACES: dict[str, Callable[[int, int], int]] = {
    "start": lambda _run, _window: 0,
    "middle": lambda run, window: (run - window) // 2,
}
"""Name of a place to its function: (length of the series, length of the window) to the window's offset, all alike."""

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


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """How long a window is, where it lies in its series, and how many samples it holds.

    Every window holds the first ``n_samples`` readings of its ``seconds``, however many more there are: an array wants
    one length, and a length that depends on which other jobs stand beside would make a window something fitted. Nine
    samples a second is the challenge's own floor, whence its 540 samples a minute.

    Examples
    --------
    >>> WindowSpec(60).n_samples
    540
    """

    seconds: float
    place: str = "middle"
    samples_per_s: float = 9.0

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds}; give a length above 0 (the challenge uses 60)")
        if self.place not in PLACES:
            raise ValueError(f"place is {self.place!r}; give one of {', '.join(PLACES)}")
        if not 0 < self.samples_per_s < math.inf:
            raise ValueError(f"samples_per_s is {self.samples_per_s}; give a rate above 0 (the challenge uses 9)")

    @property
    def n_samples(self) -> int:
        """The samples of one window, rounded up."""
        return max(1, math.ceil(self.seconds * self.samples_per_s - 1e-9))


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows, the table that says whose they are, and the series that gave none.

    ``values`` has shape (n_windows, n_channels, n_samples), float32, missing readings NaN; its rows follow ``table``
    (window_id, job_id, node, gpu_index, start). ``short`` has one row for each series without a window: its duration,
    its samples, and why (``no_job``, ``shorter_than_window``, ``too_few_samples``).
    """

    values: npt.NDArray[np.float32]
    channels: tuple[str, ...]
    table: pl.DataFrame
    short: pl.DataFrame


def cut_windows(samples: pl.DataFrame, spec: WindowSpec, channels: Sequence[str] = CHALLENGE_CHANNELS) -> Windows:
    """Cut one window out of each series of ``samples``; what is too short is reported in ``short``.

    Parameters
    ----------
    samples : frame with job_id, node, gpu_index, time and the channels, in any order of rows
    """
    missing = [name for name in (*SERIES_KEY, "time", *channels) if name not in samples.columns]
    if missing:
        raise ValueError(f"samples have no column {', '.join(missing)}; read the series with these columns")
    ordered = samples.select(*SERIES_KEY, "time", *channels).sort(*SERIES_KEY, "time", maintain_order=True)
    series = (
        ordered.with_row_index("row")
        .group_by(*SERIES_KEY, maintain_order=True)
        .agg(first=pl.col("row").first().cast(pl.Int64), samples=pl.len().cast(pl.Int64))
    )
    time_us = ordered["time"].to_physical().to_numpy()
    window_us = round(spec.seconds * US_PER_S)

    begins, starts_us, kept, reasons = [], [], [], []
    for index, (job_id, first, count) in enumerate(series.select("job_id", "first", "samples").iter_rows()):
        times = time_us[first : first + count]
        run_us = int(times[-1] - times[0])
        start_us = int(times[0]) + PLACES[spec.place](run_us, window_us)
        begin, end = np.searchsorted(times, [start_us, start_us + window_us])
        if job_id is None:
            reasons.append((index, run_us, "no_job"))
        elif run_us < window_us:
            reasons.append((index, run_us, "shorter_than_window"))
        elif end - begin < spec.n_samples:
            reasons.append((index, run_us, "too_few_samples"))
        else:
            kept.append(index)
            begins.append(first + int(begin))
            starts_us.append(start_us)

    rows = np.asarray(begins, dtype=np.int64)[:, None] + np.arange(spec.n_samples)
    values = np.empty((len(kept), len(channels), spec.n_samples), dtype=np.float32)
    for channel, name in enumerate(channels):
        values[:, channel] = ordered[name].cast(pl.Float32).to_numpy()[rows]
    table = (
        series[kept]
        .select(
            pl.int_range(len(kept), dtype=pl.Int64).alias("window_id"),
            *SERIES_KEY,
            pl.Series("start", starts_us, dtype=pl.Int64).cast(TIME),
        )
        .cast(_WINDOW_SCHEMA)
    )
    short = (
        series[[index for index, _, _ in reasons]]
        .select(
            *SERIES_KEY,
            pl.Series("duration_s", [run_us / US_PER_S for _, run_us, _ in reasons], dtype=pl.Float64),
            "samples",
            pl.Series("reason", [reason for _, _, reason in reasons], dtype=pl.String),
        )
        .cast(_SHORT_SCHEMA)
    )
    return Windows(values=values, channels=tuple(channels), table=table, short=short)
