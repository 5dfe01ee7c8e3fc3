"""A series as a particle in a force: the cubic that its drift follows, and where that force vanishes."""

from __future__ import annotations

import numpy as np

from features.efficient.arithmetic import quantile_of
from features.efficient.kernel import kernel
from features.efficient.series import Calculator, SeriesBatch, Values

_N_BINS = 30
_DEGREE = 3


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
    for i, (level, change) in enumerate(_drift_bins(batch.values, _quantile_places()).transpose(0, 2, 1)):
        used = np.isfinite(level) & np.isfinite(change)
        if used.any() and not np.isinf(batch.values[i]).any():
            out[i] = _fit_cubic(level[used], change[used])
    return out


def _fit_cubic(x: Values, y: Values) -> Values:
    """Least squares on columns of equal length, as ``numpy.polyfit`` does it."""
    powers = np.vander(x, _DEGREE + 1)
    scale = np.sqrt((powers * powers).sum(axis=0))
    try:
        solution = np.linalg.lstsq(powers / scale, y, rcond=len(x) * np.finfo(float).eps)[0]
    except np.linalg.LinAlgError:  # values too large to be squared
        return np.full(_DEGREE + 1, np.nan)
    return np.asarray(solution / scale)


@kernel
def _drift_bins(values: Values, places: Values) -> Values:
    """Mean value and mean following change in each quantile bin, shape (n_series, n_bins, 2); NaN in an empty bin."""
    n_series, n_samples = values.shape
    n_bins = len(places) - 1
    out = np.full((n_series, n_bins, 2), np.nan)
    edges = np.empty(n_bins + 1)
    total, lost, count = np.empty((n_bins, 2)), np.empty((n_bins, 2)), np.empty((n_bins, 2))
    for i in range(n_series):
        x = values[i]
        rising = np.sort(x[:-1])
        n_present = len(rising)
        while n_present and np.isnan(rising[n_present - 1]):
            n_present -= 1
        if not n_present:
            continue
        for b in range(n_bins + 1):
            edges[b] = quantile_of(rising, n_present, places[b])
        distinct = True
        for b in range(n_bins):
            distinct &= edges[b] < edges[b + 1]
        if not distinct:
            continue
        total[:], lost[:], count[:] = 0.0, 0.0, 0.0
        for t in range(n_samples - 1):
            b = np.searchsorted(edges, x[t], side="left") - 1
            if x[t] == edges[0]:
                b = 0
            if np.isnan(x[t]) or b < 0 or b >= n_bins:
                continue
            for k in range(2):
                value = x[t + 1] - x[t] if k else x[t]
                if value == value:  # a compensated sum, as pandas adds groups
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
    out = np.full(batch.n_series, np.nan)
    for i, cubic in enumerate(batch.once(_drift)):
        if np.isfinite(cubic).all() and cubic.any():
            roots = np.roots(cubic)
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
