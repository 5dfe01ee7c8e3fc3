"""Quantiles over dyadic intervals of a channel, of its changes and of its spectrum.

Dempster, Schmidt, Webb, "QUANT: a minimalist interval method for time series classification", Data Mining and Knowledge
Discovery (2024), after its text: intervals of 1, 1/2, 1/4, ... of the series, and the same moved by half their length;
one quantile for every four samples, evenly spaced; the interval's mean taken from every second one. Where the text
leaves the rounding of uneven halves open it is that of the authors' own code, so columns and values are theirs.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.kernel import kernel, loose_kernel
from features.windows import FloatArray

_DEPTH = 6
_SAMPLES_PER_QUANTILE = 4
_SMOOTHED = 5
_WINDOWS_AT_ONCE = 64

_Series = npt.NDArray[np.float32]
_Places = npt.NDArray[np.int64]


def _itself(values: _Series) -> _Series:
    return values


def _smoothed_change(values: _Series) -> _Series:
    """First differences, each the mean of five, the ends repeated."""
    change = np.diff(values, axis=-1)
    half = _SMOOTHED // 2
    padded = np.pad(change, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="edge")
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED, axis=-1).mean(axis=-1), np.float32)


def _second_change(values: _Series) -> _Series:
    return np.diff(values, n=2, axis=-1)


def _amplitude(values: _Series) -> _Series:
    # in single precision the rounding of a level of 100,000 MiB would drown the small coefficients
    return np.abs(np.fft.rfft(values.astype(np.float64), axis=-1)).astype(np.float32)


REPRESENTATIONS: dict[str, Callable[[_Series], _Series]] = {
    "values": _itself,
    "change": _smoothed_change,
    "second_change": _second_change,
    "spectrum": _amplitude,
}
"""Name of what the intervals are cut from to its function, of arrays whose last axis is time."""

LEAST_SAMPLES = 4
"""A shorter series has no second change to take quantiles of."""


def interval_names(channels: Sequence[str], n_samples: int) -> list[str]:
    """Return the names of the columns of ``intervals``: representation, interval (end excluded), and its quantile.

    Examples
    --------
    >>> interval_names(["power_w"], 540)[1]
    'power_w__intervals__of_values__start_0__end_540__q_0.00746269'
    """
    lengths = _lengths(n_samples)
    return [
        f"{channel}__intervals__of_{name}__start_{start}__end_{end}__q_{q:.6g}"
        for channel in channels
        for name, length in lengths.items()
        for start, end in dyadic_intervals(length)
        for q in _quantile_places(end - start)
    ]


def dyadic_intervals(n_samples: int) -> list[tuple[int, int]]:
    """Return start and end of each interval, the longest first, those moved by half a length after their level.

    Examples
    --------
    >>> dyadic_intervals(8)
    [(0, 8), (0, 4), (4, 8), (2, 6), (0, 2), (2, 4), (4, 6), (6, 8), (1, 3), (3, 5), (5, 7), (0, 1), (1, 2), (2, 3), \
(3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    """
    return [interval for level in _levels(n_samples) for interval in level]


def _levels(n_samples: int) -> list[list[tuple[int, int]]]:
    """The intervals, in groups of which no two overlap; an interval has its own place in each group."""
    found: list[list[tuple[int, int]]] = []
    for level in range(min(_DEPTH, int(math.log2(n_samples)) + 1)):
        count = 2**level
        whole = list(itertools.pairwise(n_samples * i // count for i in range(count + 1)))
        found.append(whole)
        if level and statistics.median_low(end - start for start, end in whole) > 1:
            shift = -(-n_samples // (2 * count))  # half of a length, rounded up
            moved = [(start + shift, end + shift) for start, end in whole[:-1]]
            found.append([interval for interval in moved if interval not in whole])  # in short series some coincide
    return found


def intervals(values: FloatArray) -> npt.NDArray[np.float32]:
    """Quantiles over the intervals of each channel of each window.

    A missing reading makes the quantiles of the intervals that hold it NaN, and the whole spectrum; so does an infinite
    one where another stands against it.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), missing readings NaN, at least four samples

    Returns
    -------
    array of shape (n_windows, n_channels * quantiles), its columns named by ``interval_names``
    """
    if values.ndim != 3:
        raise ValueError(f"values have {values.ndim} dimensions; give (n_windows, n_channels, n_samples)")
    n_windows, n_channels, n_samples = values.shape
    width = sum(
        len(_quantile_places(end - start))
        for length in _lengths(n_samples).values()
        for start, end in dyadic_intervals(length)
    )
    out = np.empty((n_windows, n_channels, width), dtype=np.float32)
    for first in range(0, n_windows, _WINDOWS_AT_ONCE):
        part = out[first : first + _WINDOWS_AT_ONCE].reshape(-1, width)
        values_of_part = np.ascontiguousarray(values[first : first + _WINDOWS_AT_ONCE], np.float32)
        column = 0
        for represent in REPRESENTATIONS.values():
            series = represent(values_of_part).reshape(len(part), -1)
            order = _order(series)
            for level in _levels(series.shape[1]):
                table = _table(tuple(level), series.shape[1])
                _fill(part, column, series, order, table)
                column += len(table.low)
    return out.reshape(n_windows, n_channels * width)


def _lengths(n_samples: int) -> dict[str, int]:
    """How many samples each representation of a series has."""
    if n_samples < LEAST_SAMPLES:
        raise ValueError(f"windows have {n_samples} samples; give {LEAST_SAMPLES} or more for quantiles over intervals")
    return {
        "values": n_samples,
        "change": n_samples - 1,
        "second_change": n_samples - 2,
        "spectrum": n_samples // 2 + 1,
    }


def _quantile_places(length: int) -> npt.NDArray[np.float64]:
    """The evenly spaced quantiles of an interval; its median where it has room for one only."""
    count = 1 + (length - 1) // _SAMPLES_PER_QUANTILE
    return np.linspace(0, 1, count) if count > 1 else np.array([0.5])


def _order(series: _Series) -> npt.NDArray[np.uint32]:
    """The places of each row's samples in rising order: sorted are the bits of the value, made to rise, and place."""
    bits = series.view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(bool)
    rising = np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    keys = np.sort((rising << np.uint64(32)) | np.arange(series.shape[1], dtype=np.uint64), axis=1)
    return keys.astype(np.uint32)


class _Table(NamedTuple):
    """What is known of a level before any series is: of each sample its interval, one beyond the last for none; of each
    interval start and end; of each column its interval, its quantile's neighbours and weight, and the mean's weight."""

    member: npt.NDArray[np.uint32]
    bounds: npt.NDArray[np.uint32]
    interval: npt.NDArray[np.uint32]
    low: npt.NDArray[np.uint32]
    high: npt.NDArray[np.uint32]
    weight: npt.NDArray[np.float64]
    less_mean: npt.NDArray[np.bool_]


@lru_cache(maxsize=128)
def _table(level: tuple[tuple[int, int], ...], n_samples: int) -> _Table:
    member = np.full(n_samples, len(level))
    parts = []
    for index, (start, end) in enumerate(level):
        member[start:end] = index
        last = end - start - 1
        position = _quantile_places(end - start) * last
        below = np.minimum(position.astype(np.int64), last)
        odd = np.arange(len(position)) % 2 == 1
        parts.append(
            (np.full(len(position), index), start + below, start + np.minimum(below + 1, last), position - below, odd)
        )
    interval, low, high, weight, odd = (np.concatenate(column) for column in zip(*parts, strict=True))
    bounds = np.array([*level, (n_samples, n_samples)])  # what lies in no interval goes to the end
    return _Table(_short(member), _short(bounds), _short(interval), _short(low), _short(high), weight, odd)


def _short(places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    return places.astype(np.uint32)


@kernel
def _fill(out: _Series, first: int, series: _Series, order: npt.NDArray[np.uint32], table: _Table) -> None:
    """Write the quantiles of one level's intervals into the columns of ``out``, from the first on."""
    n_rows, n_samples = series.shape
    member, bounds = table.member, table.bounds
    n_intervals = len(bounds) - 1
    rising = np.empty(2 * n_samples, np.float32)
    taken = np.empty(n_intervals + 1, np.uint32)
    mean = np.empty(n_intervals)
    for row in range(n_rows):
        taken[:] = bounds[:, 0]
        for sample in order[row]:  # the rising samples of the whole, dealt out to their intervals, rise in each
            index = member[sample]
            rising[taken[index]] = series[row, sample]
            taken[index] += np.uint32(1)
        for index in range(n_intervals):
            mean[index] = _mean(series[row], bounds[index, 0], bounds[index, 1])
        for column in range(len(table.low)):
            one, other = rising[table.low[column]], rising[table.high[column]]
            mean_of = mean[table.interval[column]]
            found = one + (other - one) * table.weight[column]
            if table.less_mean[column]:
                found -= mean_of
            out[row, first + column] = np.nan if np.isnan(mean_of) else found


@loose_kernel
def _mean(series: _Series, start: int, end: int) -> float:
    total = 0.0
    for sample in range(start, end):
        total += series[sample]
    return total / (end - start)
