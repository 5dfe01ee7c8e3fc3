"""Quantiles over dyadic intervals of a channel, of its changes and of its spectrum.

Dempster, Schmidt, Webb, "QUANT: a minimalist interval method for time series classification", Data Mining and Knowledge
Discovery (2024), after its text: intervals of 1, 1/2, 1/4, ... of the series, and the same moved by half their length;
one quantile for every four samples, evenly spaced; the interval's mean taken from every second one.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from features.windows import FloatArray

_DEPTH = 6
_SAMPLES_PER_QUANTILE = 4
_SMOOTHED = 5
_WINDOWS_AT_ONCE = 64

_Series = npt.NDArray[np.float32]


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
    return np.abs(np.fft.rfft(values, axis=-1)).astype(np.float32)


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
    found: list[tuple[int, int]] = []
    for level in range(min(_DEPTH, int(math.log2(n_samples)) + 1)):
        edges = [n_samples * i // 2**level for i in range(2**level + 1)]
        found += itertools.pairwise(edges)
        length = statistics.median(end - start for start, end in itertools.pairwise(edges))
        if level and length > 1:
            shift = math.ceil(length / 2)
            found += [(start + shift, end + shift) for start, end in itertools.pairwise(edges[:-1])]
    return found


def intervals(values: FloatArray) -> npt.NDArray[np.float32]:
    """Quantiles over the intervals of each channel of each window.

    A missing reading makes the quantiles of the intervals that hold it NaN, and the whole spectrum.

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
        part = slice(first, first + _WINDOWS_AT_ONCE)
        column = 0
        for block in _quantiles(values[part].astype(np.float32)):
            out[part, :, column : column + block.shape[2]] = block
            column += block.shape[2]
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


def _quantiles(values: _Series) -> Iterator[_Series]:
    """The quantiles of one interval after the other, of each representation."""
    for represent in REPRESENTATIONS.values():
        series = represent(values)
        for start, end in dyadic_intervals(series.shape[2]):
            piece = series[:, :, start:end]
            rising = np.sort(piece, axis=2)
            found = _interpolate(rising, _quantile_places(end - start))
            if found.shape[2] > 1:
                found[:, :, 1::2] -= piece.mean(axis=2, keepdims=True)
            found[np.isnan(rising[:, :, -1])] = np.nan  # NaN is sorted last
            yield found


def _interpolate(rising: _Series, places: npt.NDArray[np.float64]) -> _Series:
    """Quantiles of sorted values, linear between neighbours."""
    position = places * (rising.shape[2] - 1)
    below = np.minimum(position.astype(np.int64), rising.shape[2] - 1)
    above = np.minimum(below + 1, rising.shape[2] - 1)
    low = rising[:, :, below]
    return np.asarray(low + (rising[:, :, above] - low) * (position - below).astype(np.float32))
