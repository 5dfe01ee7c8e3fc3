"""How high a series stands and how far it spreads: means, moments, quantiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.efficient.arithmetic import quantile_of
from features.efficient.series import Calculator, SeriesBatch, Values, plain
from features.kernel import kernel

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)
_SYMMETRY = tuple(i * 0.05 for i in range(20))
_SPREADS = tuple(i * 0.05 for i in range(1, 20))
_SIGMAS = (0.5, 1, 1.5, 2, 2.5, 3, 5, 6, 7, 10)
_N_GREATEST = 7


def _variance_larger_than_deviation(batch: SeriesBatch) -> npt.NDArray[np.bool_]:
    return np.asarray(batch.variance > batch.deviation)


def _abs_energy(batch: SeriesBatch) -> Values:
    return np.asarray(np.einsum("ij,ij->i", batch.values, batch.values))


def _variation_coefficient(batch: SeriesBatch) -> Values:
    return np.where(batch.mean == 0, np.nan, batch.deviation / batch.mean)


def _root_mean_square(batch: SeriesBatch) -> Values:
    return np.asarray(np.sqrt((batch.values * batch.values).mean(axis=1)))


def _absolute_maximum(batch: SeriesBatch) -> Values:
    return np.maximum(np.abs(batch.minimum), np.abs(batch.maximum))


def _skewness(batch: SeriesBatch) -> Values:
    """The adjusted Fisher-Pearson skewness G1; NaN for a constant or for fewer than three samples."""
    n = batch.n_samples
    if n < 3:
        return np.full(batch.n_series, np.nan)
    _, second, third, _ = _moments(batch.values).T
    skewness = third / (second * np.sqrt(second)) * (n * np.sqrt(n - 1.0) / (n - 2.0))
    return np.where(batch.absent, np.nan, skewness)


def _kurtosis(batch: SeriesBatch) -> Values:
    """The adjusted excess kurtosis G2 of what is not NaN; NaN for a constant or for fewer than four samples."""
    n, second, _, fourth = _moments(batch.values).T
    excess = n * (n + 1.0) * (fourth / (second * second)) - 3.0 * (n - 1.0)
    return np.where(n < 4, np.nan, excess * ((n - 1.0) / ((n - 2.0) * (n - 3.0))))


@kernel
def _moments(values: Values) -> Values:
    """Count, and sums of the second, third and fourth powers of the offsets from the mean, NaN left out.

    Offsets are first taken from a value of the series, so that a constant has exactly none.
    """
    n_series, n_samples = values.shape
    out = np.zeros((n_series, 4))
    room = np.empty(n_samples)
    for i in range(n_series):
        count = 0
        for t in range(n_samples):
            value = values[i, t]
            if not np.isnan(value):
                room[count] = value - room[0] if count else value
                count += 1
        if not count:
            continue
        room[0] = 0.0
        total = 0.0
        for t in range(count):
            total += room[t]
        mean = total / count
        second = third = fourth = 0.0
        for t in range(count):
            offset = room[t] - mean
            square = offset * offset
            second += square
            third += square * offset
            fourth += square * square
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = count, second, third, fourth
    return out


def _symmetry_looking(batch: SeriesBatch) -> npt.NDArray[np.bool_]:
    distance = np.abs(batch.mean - batch.median)
    spread = batch.maximum - batch.minimum
    return np.asarray(distance[:, None] < np.array(_SYMMETRY) * spread[:, None])


def _large_standard_deviation(batch: SeriesBatch) -> npt.NDArray[np.bool_]:
    spread = batch.maximum - batch.minimum
    return np.asarray(batch.deviation[:, None] > np.array(_SPREADS) * spread[:, None])


def _ratio_beyond_r_sigma(batch: SeriesBatch) -> Values:
    return _beyond(batch.offset, batch.deviation[:, None] * np.array(_SIGMAS))


@kernel
def _beyond(offset: Values, limits: Values) -> Values:
    """Share of the offsets of each series that are larger than each of its limits."""
    n_series, n_samples = offset.shape
    out = np.empty(limits.shape)
    for i in range(n_series):
        for k in range(limits.shape[1]):
            limit = limits[i, k]
            count = 0
            for t in range(n_samples):
                count += abs(offset[i, t]) > limit
            out[i, k] = count / n_samples
    return out


def _quantile(batch: SeriesBatch) -> Values:
    return np.where(batch.absent[:, None], np.nan, _quantiles(batch.rising, np.array(QUANTILES)))


@kernel
def _quantiles(rising: Values, qs: Values) -> Values:
    out = np.empty((len(rising), len(qs)))
    for i in range(len(rising)):
        for k in range(len(qs)):
            out[i, k] = quantile_of(rising[i], rising.shape[1], qs[k])
    return out


def _mean_n_absolute_max(batch: SeriesBatch) -> Values:
    if batch.n_samples <= _N_GREATEST:
        return np.full(batch.n_series, np.nan)
    # The greatest absolute values are among the greatest and the least values.
    ends = np.concatenate([batch.rising[:, :_N_GREATEST], batch.rising[:, -_N_GREATEST:]], axis=1)
    if batch.n_samples < 2 * _N_GREATEST:
        ends = batch.values
    greatest = np.sort(np.abs(ends), axis=1)[:, -_N_GREATEST:]
    return np.where(batch.absent, np.nan, greatest.mean(axis=1))


CALCULATORS: dict[str, Calculator] = {
    "variance_larger_than_standard_deviation": plain(_variance_larger_than_deviation),
    "sum_values": plain(lambda batch: batch.values.sum(axis=1)),
    "abs_energy": plain(_abs_energy),
    "median": plain(lambda batch: batch.median),
    "mean": plain(lambda batch: batch.mean),
    "length": plain(lambda batch: np.full(batch.n_series, float(batch.n_samples))),
    "standard_deviation": plain(lambda batch: batch.deviation),
    "variation_coefficient": plain(_variation_coefficient),
    "variance": plain(lambda batch: batch.variance),
    "skewness": plain(_skewness),
    "kurtosis": plain(_kurtosis),
    "root_mean_square": plain(_root_mean_square),
    "maximum": plain(lambda batch: batch.maximum),
    "absolute_maximum": plain(_absolute_maximum),
    "minimum": plain(lambda batch: batch.minimum),
    "symmetry_looking": Calculator(tuple(f"r_{r}" for r in _SYMMETRY), _symmetry_looking),
    "large_standard_deviation": Calculator(tuple(f"r_{r}" for r in _SPREADS), _large_standard_deviation),
    "quantile": Calculator(tuple(f"q_{q}" for q in QUANTILES), _quantile),
    "ratio_beyond_r_sigma": Calculator(tuple(f"r_{r}" for r in _SIGMAS), _ratio_beyond_r_sigma),
    "mean_n_absolute_max": Calculator((f"number_of_maxima_{_N_GREATEST}",), _mean_n_absolute_max),
}
