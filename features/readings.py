"""What windows hold: the readings of a stretch of ordered samples, or straight lines between them on an even grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ingest.units import US_PER_S


@dataclass(frozen=True, slots=True)
class Cut:
    """One window: its series, its start, and the rows of the ordered samples that it holds (end excluded)."""

    series: int
    start_us: int
    begin: int
    end: int


def first_readings(
    ordered: pl.DataFrame, kept: Sequence[Cut], n_samples: int, channels: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return the first ``n_samples`` readings of each window, array of shape (n_windows, n_channels, n_samples)."""
    values = np.empty((len(kept), len(channels), n_samples), dtype=np.float32)
    if not kept:
        return values
    rows = np.array([cut.begin for cut in kept], dtype=np.int64)[:, None] + np.arange(n_samples)
    for channel, name in enumerate(channels):
        values[:, channel] = ordered[name].cast(pl.Float32).to_numpy()[rows]
    return values


def even_readings(
    ordered: pl.DataFrame, kept: Sequence[Cut], n_samples: int, samples_per_s: float, channels: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return what straight lines between readings are worth on an even grid; missing beside a missing reading.

    The shape is that of `first_readings`. Where no reading is at a window's edge, the one beside it must be in
    ``ordered`` too.
    """
    values = np.empty((len(kept), len(channels), n_samples), dtype=np.float32)
    if not kept:
        return values
    grid_us = np.round(np.arange(n_samples) * (US_PER_S / samples_per_s)).astype(np.int64)
    time_us = ordered["time"].to_physical().to_numpy()
    columns = [ordered[name].cast(pl.Float64).to_numpy() for name in channels]
    for window, cut in enumerate(kept):
        at_us = cut.start_us + grid_us
        first = cut.begin - (time_us[cut.begin] > cut.start_us)
        after = np.searchsorted(time_us[first : cut.end + 1], at_us, side="right") + first
        after = np.minimum(after, len(time_us) - 1)
        before = after - 1
        exact = time_us[before] == at_us
        span_us = np.where(exact, 1, time_us[after] - time_us[before])
        weight = np.where(exact, 0.0, (at_us - time_us[before]) / np.maximum(span_us, 1))
        for channel, column in enumerate(columns):
            rise = np.where(exact, 0.0, column[after] - column[before])
            values[window, channel] = column[before] + rise * weight
    return values


def reading_rates(time_us: npt.NDArray[np.int64], kept: Sequence[Cut], n_samples: int) -> npt.NDArray[np.float64]:
    """Return the samples a second of each window, from its first to its last; NaN where that is one instant."""
    begin = np.array([cut.begin for cut in kept], dtype=np.int64)
    span_us = time_us[begin + n_samples - 1] - time_us[begin]
    return np.where(span_us > 0, (n_samples - 1) * US_PER_S / np.maximum(span_us, 1), np.nan)
