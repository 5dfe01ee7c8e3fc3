"""Straight lines through a series, through its aggregates over chunks, and over time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from features.efficient.arithmetic import mean_of, variance_of
from features.efficient.series import Calculator, SeriesBatch, Values
from features.kernel import kernel

_ATTRIBUTES = ("pvalue", "rvalue", "intercept", "slope", "stderr")
_CHUNK_ATTRIBUTES = ("rvalue", "intercept", "slope", "stderr")
_CHUNK_LENGTHS = (5, 10, 50)
_CHUNK_AGGREGATES = ("max", "min", "mean", "var")
_TINY = 1e-20


@kernel
def _fit_line(x: Values, y: Values, count: int) -> tuple[float, float, float, float]:
    """Correlation, intercept, slope and the slope's standard error of a least-squares line, as scipy gives them."""
    if count < 2:
        return np.nan, np.nan, np.nan, np.nan
    x_mean, y_mean = mean_of(x, 0, count), mean_of(y, 0, count)
    xx = xy = yy = 0.0
    for t in range(count):
        dx, dy = x[t] - x_mean, y[t] - y_mean
        xx += dx * dx
        xy += dx * dy
        yy += dy * dy
    if xx == 0.0 or np.isnan(y_mean):
        return np.nan, np.nan, np.nan, np.nan
    xx, xy, yy = xx / count, xy / count, yy / count
    correlation = (np.nan if xy == 0.0 else 0.0) if yy == 0.0 else xy / math.sqrt(xx * yy)
    correlation = correlation if np.isnan(correlation) else min(max(correlation, -1.0), 1.0)
    slope = xy / xx
    error = 0.0
    if count > 2:
        error = math.sqrt((1.0 - correlation**2) * yy / xx / (count - 2))
    return correlation, y_mean - slope * x_mean, slope, error


@kernel
def _fit_lines(x: Values, y: Values) -> Values:
    out = np.empty((len(y), 4))
    for i in range(len(y)):
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = _fit_line(x[i], y[i], y.shape[1])
    return out


def _trend(x: Values, y: Values) -> Values:
    """The line through each series, and the p value of no slope, in the order of ``_ATTRIBUTES``."""
    correlation, intercept, slope, error = _fit_lines(x, y).T
    freedom = y.shape[1] - 2
    if freedom > 0:
        t = correlation * np.sqrt(freedom / ((1.0 - correlation + _TINY) * (1.0 + correlation + _TINY)))
        p_value = 2 * stdtr(freedom, -np.abs(t))
    else:
        p_value = np.where(np.isnan(slope) & np.isnan(error), np.nan, (y[:, 0] == y[:, -1]).astype(float))
    return np.stack([p_value, correlation, intercept, slope, error], axis=1)


def _linear_trend(batch: SeriesBatch) -> Values:
    places = np.tile(np.arange(batch.n_samples, dtype=float), (batch.n_series, 1))
    return _trend(places, batch.values)


def _linear_trend_timewise(batch: SeriesBatch) -> Values:
    if batch.time_h is None:
        return np.full((batch.n_series, len(_ATTRIBUTES)), np.nan)
    return _trend(batch.time_h, batch.values)


def _agg_linear_trend(batch: SeriesBatch) -> Values:
    fits = _chunk_lines(batch.values, np.array(_CHUNK_LENGTHS))
    return np.ascontiguousarray(fits.transpose(0, 3, 1, 2)).reshape(batch.n_series, -1)


@kernel
def _chunk_lines(values: Values, lengths: npt.NDArray[np.int64]) -> Values:
    """Lines through the greatest, the least, the mean and the variance of each chunk of each length.

    Shape (n_series, n_lengths, 4 aggregates, 4 results); NaN where one chunk would hold the whole series.
    """
    n_series, n_samples = values.shape
    out = np.full((n_series, len(lengths), 4, 4), np.nan)
    places = np.arange(n_samples).astype(np.float64)
    found = np.empty((4, n_samples))
    room = np.empty(n_samples)
    for i in range(n_series):
        x = values[i]
        for k in range(len(lengths)):
            length = lengths[k]
            if length >= n_samples:
                continue
            n_chunks = (n_samples + length - 1) // length
            for c in range(n_chunks):
                start = c * length
                count = min(length, n_samples - start)
                high = low = x[start]
                for t in range(start + 1, start + count):
                    high, low = max(high, x[t]), min(low, x[t])
                found[0, c], found[1, c] = high, low
                found[2, c] = mean_of(x, start, count)
                found[3, c] = variance_of(x, start, count, room)
                if np.isnan(found[2, c]) and np.isnan(found[3, c]):
                    _mark_absent(x, start, count, found, c)
            for a in range(4):
                fit = _fit_line(places, found[a], n_chunks)
                out[i, k, a, 0], out[i, k, a, 1], out[i, k, a, 2], out[i, k, a, 3] = fit
    return out


@kernel
def _mark_absent(x: Values, start: int, count: int, found: Values, c: int) -> None:
    """Make the extremes of a chunk NaN if it has one."""
    for t in range(start, start + count):
        if np.isnan(x[t]):
            found[0, c] = found[1, c] = np.nan


_TREND_NAMES = tuple(f'attr_"{attribute}"' for attribute in _ATTRIBUTES)

CALCULATORS: dict[str, Calculator] = {
    "linear_trend": Calculator(_TREND_NAMES, _linear_trend),
    "agg_linear_trend": Calculator(
        tuple(
            f'attr_"{attribute}"__chunk_len_{length}__f_agg_"{aggregate}"'
            for attribute in _CHUNK_ATTRIBUTES
            for length in _CHUNK_LENGTHS
            for aggregate in _CHUNK_AGGREGATES
        ),
        _agg_linear_trend,
    ),
    "linear_trend_timewise": Calculator(_TREND_NAMES, _linear_trend_timewise, needs_time=True),
}
