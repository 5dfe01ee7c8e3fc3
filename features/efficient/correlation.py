"""How a series resembles itself some samples later: autocorrelation, plain, aggregated and partial."""

from __future__ import annotations

import numpy as np

from features.efficient.arithmetic import pairwise_sum, product_sum
from features.efficient.series import Calculator, SeriesBatch, Values
from features.kernel import kernel

_N_LAGS = 10
_MAX_LAG = 40
_AGGREGATES = ("mean", "median", "var")
_NO_VARIANCE = 1e-8
_NO_VARIANCE_AGGREGATED = 1e-10


def _covariance(batch: SeriesBatch) -> Values:
    """Sum of the products of offsets at each lag from 0 to 40, NaN at lags that the series does not have."""
    return _lagged_products(batch.offset, _MAX_LAG)


@kernel
def _lagged_products(offset: Values, max_lag: int) -> Values:
    n_series, n_samples = offset.shape
    out = np.full((n_series, max_lag + 1), np.nan)
    room = np.empty(n_samples)
    for i in range(n_series):
        z = offset[i]
        for lag in range(min(max_lag, n_samples - 1) + 1):
            if lag >= _N_LAGS:
                out[i, lag] = product_sum(z, 0, z, lag, n_samples - lag)
                continue
            for t in range(n_samples - lag):
                room[t] = z[t] * z[t + lag]
            out[i, lag] = pairwise_sum(room, 0, n_samples - lag)
    return out


def _autocorrelation(batch: SeriesBatch) -> Values:
    pairs = np.maximum(batch.n_samples - np.arange(_N_LAGS), 0)
    correlation = batch.once(_covariance)[:, :_N_LAGS] / (pairs * batch.variance[:, None])
    return np.where(batch.variance[:, None] <= _NO_VARIANCE, np.nan, correlation)


def _agg_autocorrelation(batch: SeriesBatch) -> Values:
    """Mean, median and variance of the autocorrelations at lags 1 to 40; zero for a constant."""
    n = batch.n_samples
    if n == 1:
        return np.zeros((batch.n_series, 3))
    lags = np.arange(min(_MAX_LAG, n - 1) + 1)
    covariance = batch.once(_covariance)[:, : len(lags)] / (n - lags)
    correlation = covariance[:, 1:] / covariance[:, :1]
    found = np.stack([correlation.mean(axis=1), np.median(correlation, axis=1), correlation.var(axis=1)], axis=1)
    return np.where(batch.variance[:, None] < _NO_VARIANCE_AGGREGATED, 0.0, found)


def _partial_autocorrelation(batch: SeriesBatch) -> Values:
    """Partial autocorrelations at lags 0 to 9, by Levinson's and Durbin's recursion on the unbiased covariances."""
    n = batch.n_samples
    deepest = _N_LAGS - 1 if n // 2 > _N_LAGS - 1 else n // 2 - 1
    out = np.full((batch.n_series, _N_LAGS), np.nan)
    if deepest < 1:
        return out
    lags = np.arange(deepest + 1)
    out[:, : deepest + 1] = _levinson_durbin(batch.once(_covariance)[:, : deepest + 1] / (n - lags))
    return out


@kernel
def _levinson_durbin(covariance: Values) -> Values:
    n_series, n_lags = covariance.shape
    out = np.empty((n_series, n_lags))
    now, before = np.empty(n_lags), np.empty(n_lags)
    for i in range(n_series):
        c = covariance[i]
        out[i, 0] = 1.0
        out[i, 1] = before[1] = c[1] / c[0]
        unexplained = c[0] - before[1] * c[1]
        for k in range(2, n_lags):
            explained = 0.0
            for j in range(1, k):
                explained += before[j] * c[k - j]
            now[k] = (c[k] - explained) / unexplained
            for j in range(1, k):
                now[j] = before[j] - now[k] * before[k - j]
            unexplained *= 1.0 - now[k] * now[k]
            before[1 : k + 1] = now[1 : k + 1]
            out[i, k] = now[k]
    return out


_LAG_NAMES = tuple(f"lag_{lag}" for lag in range(_N_LAGS))

CALCULATORS: dict[str, Calculator] = {
    "autocorrelation": Calculator(_LAG_NAMES, _autocorrelation),
    "agg_autocorrelation": Calculator(
        tuple(f'f_agg_"{name}"__maxlag_{_MAX_LAG}' for name in _AGGREGATES), _agg_autocorrelation
    ),
    "partial_autocorrelation": Calculator(_LAG_NAMES, _partial_autocorrelation),
}
