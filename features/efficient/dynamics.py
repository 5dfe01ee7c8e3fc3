"""A series as a particle in a force: the cubic that its drift follows, and where that force vanishes."""

from __future__ import annotations

import numpy as np

from features.efficient.arithmetic import present_count, quantile_of
from features.efficient.series import Calculator, SeriesBatch, Values
from features.kernel import kernel

_N_BINS = 30
_DEGREE = 3
_LEAST_DIAGONAL = 1e-11
"""Of the triangle of a QR decomposition: below it, singular values decide what the data cannot tell."""


def _quantile_places() -> Values:
    """The edges of equal shares, none rounded to below its share (as ``pandas.qcut`` cuts)."""
    places = np.linspace(0, 1, _N_BINS + 1)
    return np.where(places * _N_BINS != np.arange(_N_BINS + 1), np.nextafter(places, 1), places)


def _drift(batch: SeriesBatch) -> Values:
    """Coefficients of the cubic through mean value and mean change of each bin, highest power first.

    Friedrich et al., "Extracting model equations from experimental data", Physics Letters A 271 (2000).
    NaN where two quantiles are equal: integer sensors have no drift.
    """
    out = np.full((batch.n_series, _DEGREE + 1), np.nan)
    if batch.n_samples < 3:
        return out
    level, change = _drift_bins(batch.values, np.sort(batch.values[:, :-1], axis=1), _quantile_places()).transpose(
        2, 0, 1
    )
    used = np.isfinite(level) & np.isfinite(change)
    full = used.all(axis=1)
    out[full] = _fit_cubics(level[full], change[full])
    for i in np.flatnonzero(used.any(axis=1) & np.isnan(out[:, 0])):
        out[i] = _fit_cubic(level[i, used[i]], change[i, used[i]])
    out[np.isinf(batch.rising[:, 0]) | np.isinf(batch.maximum)] = np.nan
    return out


def _fit_cubics(x: Values, y: Values) -> Values:
    """Least squares for many series at once; NaN where the columns are as good as collinear."""
    powers = x[:, :, None] ** np.arange(_DEGREE, -1, -1)
    scale = np.sqrt((powers * powers).sum(axis=1))
    scale[~np.isfinite(scale)] = np.nan
    orthogonal, upper = np.linalg.qr(np.nan_to_num(powers / scale[:, None, :], nan=0.0, posinf=0.0, neginf=0.0))
    diagonal = np.abs(np.diagonal(upper, axis1=1, axis2=2))
    sound = diagonal.min(axis=1) > _LEAST_DIAGONAL
    upper[~sound] = np.eye(_DEGREE + 1)
    solution = np.linalg.solve(upper, orthogonal.swapaxes(1, 2) @ y[:, :, None])[:, :, 0]
    return np.where(sound[:, None], solution / scale, np.nan)


def _fit_cubic(x: Values, y: Values) -> Values:
    """Least squares on columns of equal length, as ``numpy.polyfit`` does it."""
    powers = np.vander(x, _DEGREE + 1)
    scale = np.sqrt((powers * powers).sum(axis=0))
    scaled = powers / scale
    if not np.isfinite(scaled).all():  # values too large or too small to be cubed
        return np.full(_DEGREE + 1, np.nan)
    solution = np.linalg.lstsq(scaled, y, rcond=len(x) * np.finfo(float).eps)[0]
    return np.asarray(solution / scale)


@kernel
def _quantile_edges(rising: Values, places: Values, edges: Values) -> bool:
    """Fill in the quantiles of what is there of a sorted series; False if there is nothing or two are equal."""
    n_present = present_count(rising)
    if not n_present:
        return False
    for b in range(len(places)):
        edges[b] = quantile_of(rising, n_present, places[b])
    distinct = True
    for b in range(len(places) - 1):
        distinct &= edges[b] < edges[b + 1]
    return bool(distinct)


@kernel
def _drift_bins(values: Values, rising: Values, places: Values) -> Values:
    """Mean value and mean following change in each quantile bin, shape (n_series, n_bins, 2); NaN in an empty bin."""
    n_series, n_samples = values.shape
    n_bins = len(places) - 1
    out = np.full((n_series, n_bins, 2), np.nan)
    edges = np.empty(n_bins + 1)
    total, lost, count = np.empty((n_bins, 2)), np.empty((n_bins, 2)), np.empty((n_bins, 2))
    for i in range(n_series):
        x = values[i]
        if not _quantile_edges(rising[i], places, edges):
            continue
        total[:], lost[:], count[:] = 0.0, 0.0, 0.0
        for t in range(n_samples - 1):
            if not edges[0] <= x[t] <= edges[n_bins]:
                continue
            b, end = 0, n_bins - 1  # the first bin whose upper edge is not below the value
            while b < end:
                middle = (b + end) // 2
                if edges[middle + 1] < x[t]:
                    b = middle + 1
                else:
                    end = middle
            for k in range(2):
                value = x[t + 1] - x[t] if k else x[t]
                if not np.isnan(value):  # a compensated sum, as pandas adds groups
                    corrected = value - lost[b, k]
                    summed = total[b, k] + corrected
                    lost[b, k] = (summed - total[b, k]) - corrected
                    total[b, k] = summed
                    count[b, k] += 1.0
        for b in range(n_bins):
            for k in range(2):
                out[i, b, k] = total[b, k] / count[b, k]
    return out


def _friedrich_coefficients(batch: SeriesBatch) -> Values:
    return batch.once(_drift)


def _max_langevin_fixed_point(batch: SeriesBatch) -> Values:
    """The greatest real part among the roots of the drift."""
    drift = batch.once(_drift)
    out = np.full(batch.n_series, np.nan)
    known = np.isfinite(drift).all(axis=1)
    cubic = known & (drift[:, 0] != 0) & (drift[:, -1] != 0)
    companion = np.zeros((int(cubic.sum()), _DEGREE, _DEGREE))
    companion[:, 1:, :-1] = np.eye(_DEGREE - 1)
    companion[:, 0] = -drift[cubic, 1:] / drift[cubic, :1]
    bounded = np.isfinite(companion).all(axis=(1, 2))
    companion[~bounded] = 0.0
    out[cubic] = np.where(bounded, np.linalg.eigvals(companion).real.max(axis=1, initial=-np.inf), np.nan)
    for i in np.flatnonzero(known & ~cubic):  # a lower degree, or a root at zero
        roots = np.roots(drift[i])
        if len(roots):
            out[i] = np.real(roots).max()
    return out


_NAME = f"m_{_DEGREE}__r_{_N_BINS}"

CALCULATORS: dict[str, Calculator] = {
    "friedrich_coefficients": Calculator(
        tuple(f"coeff_{k}__{_NAME}" for k in range(_DEGREE + 1)), _friedrich_coefficients
    ),
    "max_langevin_fixed_point": Calculator((_NAME,), _max_langevin_fixed_point),
}
