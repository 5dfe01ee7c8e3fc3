"""How a series changes from sample to sample, overall and within a corridor of quantiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.efficient.arithmetic import mean_of, present_count, quantile_of, variance_of
from features.efficient.series import Calculator, SeriesBatch, Values, plain
from features.kernel import kernel

_LAGS = (1, 2, 3)
_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_CORRIDORS = tuple((low, high) for low in range(5) for high in range(1, 6) if _EDGES[low] < _EDGES[high])


def _absolute_sum_of_changes(batch: SeriesBatch) -> Values:
    return np.asarray(np.abs(batch.step).sum(axis=1))


def _mean_abs_change(batch: SeriesBatch) -> Values:
    return np.asarray(batch.once(_absolute_sum_of_changes) / (batch.n_samples - 1))


def _mean_change(batch: SeriesBatch) -> Values:
    if batch.n_samples < 2:
        return np.full(batch.n_series, np.nan)
    return np.asarray((batch.values[:, -1] - batch.values[:, 0]) / (batch.n_samples - 1))


def _mean_second_derivative_central(batch: SeriesBatch) -> Values:
    if batch.n_samples < 3:
        return np.full(batch.n_series, np.nan)
    x = batch.values
    return np.asarray((x[:, -1] - x[:, -2] - x[:, 1] + x[:, 0]) / (2 * (batch.n_samples - 2)))


def _cid_ce(batch: SeriesBatch) -> Values:
    """Length of the line that the series draws, of the standardised series first."""
    with_scale = np.where(batch.deviation == 0, 1.0, batch.deviation)
    standard = np.diff(batch.offset / with_scale[:, None], axis=1)
    lengths = [np.sqrt(np.einsum("ij,ij->i", step, step)) for step in (standard, batch.step)]
    lengths[0] = np.where(batch.deviation == 0, 0.0, lengths[0])
    return np.stack(lengths, axis=1)


def _time_reversal_asymmetry(batch: SeriesBatch) -> Values:
    return batch.once(_of_lags)[:, :3]


def _c3(batch: SeriesBatch) -> Values:
    return batch.once(_of_lags)[:, 3:]


def _of_lags(batch: SeriesBatch) -> Values:
    return _products(batch.values, np.array(_LAGS))


@kernel
def _products(values: Values, lags: npt.NDArray[np.int64]) -> Values:
    """Time reversal asymmetry at each lag, then c3 at each lag; zero where the series is too short."""
    n_series, n_samples = values.shape
    out = np.zeros((n_series, 2 * len(lags)))
    room = np.empty(n_samples)
    for i in range(n_series):
        x = values[i]
        for k in range(len(lags)):
            lag = lags[k]
            count = n_samples - 2 * lag
            if count <= 0:
                continue
            for t in range(count):
                zero, one, two = x[t], x[t + lag], x[t + 2 * lag]
                room[t] = two * two * one - one * zero * zero
            out[i, k] = mean_of(room, 0, count)
            for t in range(count):
                room[t] = x[t + 2 * lag] * x[t + lag] * x[t]
            out[i, len(lags) + k] = mean_of(room, 0, count)
    return out


def _change_quantiles(batch: SeriesBatch) -> Values:
    return _corridors(batch.values, batch.rising, np.array(_EDGES), np.array(_CORRIDORS))


@kernel
def _corridors(values: Values, rising: Values, edges: Values, corridors: npt.NDArray[np.int64]) -> Values:
    """Mean and variance of the changes within each corridor of quantiles, then of the absolute changes.

    A change counts where the samples before and after it lie within the corridor, edges included. Without any, zero.
    """
    n_series, n_samples = values.shape
    out = np.zeros((n_series, 4 * len(corridors)))
    level = np.empty(len(edges))
    room, change, size = np.empty(n_samples), np.empty(n_samples), np.empty(n_samples)
    inside = np.empty(n_samples, np.bool_)
    for i in range(n_series):
        count = present_count(rising[i])
        if not count:
            continue
        for k in range(len(edges)):
            level[k] = quantile_of(rising[i], count, edges[k])
        x = values[i]
        for k in range(len(corridors)):
            low, high = level[corridors[k, 0]], level[corridors[k, 1]]
            for t in range(n_samples):  # infinite values can make an edge NaN, which is above everything
                inside[t] = (x[t] == low) | ((x[t] > low) & (not x[t] > high))
            found = 0
            for t in range(1, n_samples):
                change[found] = x[t] - x[t - 1]
                found += inside[t] & inside[t - 1]
            if not found:
                continue
            for t in range(found):
                size[t] = abs(change[t])
            out[i, 4 * k] = mean_of(change, 0, found)
            out[i, 4 * k + 1] = variance_of(change, 0, found, room)
            out[i, 4 * k + 2] = mean_of(size, 0, found)
            out[i, 4 * k + 3] = variance_of(size, 0, found, room)
    return out


def _corridor_names() -> tuple[str, ...]:
    return tuple(
        f'f_agg_"{f_agg}"__isabs_{isabs}__qh_{_EDGES[high]}__ql_{_EDGES[low]}'
        for low, high in _CORRIDORS
        for isabs in (False, True)
        for f_agg in ("mean", "var")
    )


CALCULATORS: dict[str, Calculator] = {
    "mean_abs_change": plain(_mean_abs_change),
    "mean_change": plain(_mean_change),
    "mean_second_derivative_central": plain(_mean_second_derivative_central),
    "absolute_sum_of_changes": plain(lambda batch: batch.once(_absolute_sum_of_changes)),
    "time_reversal_asymmetry_statistic": Calculator(tuple(f"lag_{lag}" for lag in _LAGS), _time_reversal_asymmetry),
    "c3": Calculator(tuple(f"lag_{lag}" for lag in _LAGS), _c3),
    "cid_ce": Calculator(("normalize_True", "normalize_False"), _cid_ce),
    "change_quantiles": Calculator(_corridor_names(), _change_quantiles),
}
