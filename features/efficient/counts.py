"""What is counted: samples on one side of a level, the longest stretches there, peaks, and where the extremes lie."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.efficient.series import Calculator, SeriesBatch, Values, plain
from features.kernel import kernel

_PEAK_SUPPORTS = (1, 3, 5, 10, 50)
_RANGES = (
    (-1.0, 1.0, "max_1__min_-1"),
    (-1e12, 0.0, "max_0__min_-1000000000000.0"),
    (0.0, 1e12, "max_1000000000000.0__min_0"),
)
_MASS_QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)
_N_CHUNKS = 10


def _sides(batch: SeriesBatch) -> Values:
    return _around_mean(batch.values, batch.mean)


@kernel
def _around_mean(values: Values, mean: Values) -> Values:
    """Samples below and above the mean, and the longest stretches below and above it."""
    n_series, n_samples = values.shape
    out = np.empty((n_series, 4))
    for i in range(n_series):
        level = mean[i]
        below = above = run_below = run_above = longest_below = longest_above = 0
        for t in range(n_samples):
            value = values[i, t]
            is_below = value < level
            is_above = value > level
            below += is_below
            above += is_above
            run_below = run_below + 1 if is_below else 0
            run_above = run_above + 1 if is_above else 0
            longest_below = max(longest_below, run_below)
            longest_above = max(longest_above, run_above)
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = below, above, longest_below, longest_above
    return out


def _longest_strike_below_mean(batch: SeriesBatch) -> Values:
    return batch.once(_sides)[:, 2]


def _longest_strike_above_mean(batch: SeriesBatch) -> Values:
    return batch.once(_sides)[:, 3]


def _count_above_mean(batch: SeriesBatch) -> Values:
    return batch.once(_sides)[:, 1]


def _count_below_mean(batch: SeriesBatch) -> Values:
    return batch.once(_sides)[:, 0]


def _last_location_of_maximum(batch: SeriesBatch) -> Values:
    return np.asarray(1.0 - np.argmax(batch.values[:, ::-1], axis=1) / batch.n_samples)


def _first_location_of_maximum(batch: SeriesBatch) -> Values:
    return np.asarray(np.argmax(batch.values, axis=1) / batch.n_samples)


def _last_location_of_minimum(batch: SeriesBatch) -> Values:
    return np.asarray(1.0 - np.argmin(batch.values[:, ::-1], axis=1) / batch.n_samples)


def _first_location_of_minimum(batch: SeriesBatch) -> Values:
    return np.asarray(np.argmin(batch.values, axis=1) / batch.n_samples)


def _value_count(batch: SeriesBatch) -> npt.NDArray[np.int64]:
    return np.stack([(batch.values == value).sum(axis=1) for value in (0, 1, -1)], axis=1)


def _range_count(batch: SeriesBatch) -> npt.NDArray[np.int64]:
    x = batch.values
    return np.stack([((x >= low) & (x < high)).sum(axis=1) for low, high, _ in _RANGES], axis=1)


def _number_crossing(batch: SeriesBatch) -> npt.NDArray[np.int64]:
    sides = [batch.values > level for level in (0, -1, 1)]
    return np.stack([(side[:, 1:] != side[:, :-1]).sum(axis=1) for side in sides], axis=1)


def _count_above(batch: SeriesBatch) -> Values:
    return np.asarray((batch.values >= 0).sum(axis=1) / batch.n_samples)


def _count_below(batch: SeriesBatch) -> Values:
    return np.asarray((batch.values <= 0).sum(axis=1) / batch.n_samples)


def _number_peaks(batch: SeriesBatch) -> Values:
    return _peaks(batch.values, np.array(_PEAK_SUPPORTS))


@kernel
def _peaks(values: Values, supports: npt.NDArray[np.int64]) -> Values:
    """Count the samples that are larger than each of so many neighbours on both sides."""
    n_series, n_samples = values.shape
    n_supports = len(supports)
    out = np.zeros((n_series, n_supports))
    for i in range(n_series):
        for t in range(1, n_samples - 1):
            value = values[i, t]
            room = min(t, n_samples - 1 - t, supports[-1])
            reach = 0
            while reach < room and value > values[i, t - reach - 1] and value > values[i, t + reach + 1]:
                reach += 1
            for k in range(n_supports):
                out[i, k] += supports[k] <= reach
    return out


def _index_mass_quantile(batch: SeriesBatch) -> Values:
    size = np.abs(batch.values)
    return _mass_places(size, size.sum(axis=1), np.array(_MASS_QUANTILES))


@kernel
def _mass_places(size: Values, total: Values, qs: Values) -> Values:
    """Share of the series after which each part of the mass is reached; the first sample where it never is."""
    n_series, n_samples = size.shape
    out = np.full((n_series, len(qs)), 1 / n_samples)
    for i in range(n_series):
        if total[i] == 0:
            out[i] = np.nan
            continue
        mass = 0.0
        k = 0
        for t in range(n_samples):
            mass += size[i, t]
            while k < len(qs) and mass / total[i] >= qs[k]:
                out[i, k] = (t + 1) / n_samples
                k += 1
    return out


def _energy_ratio_by_chunks(batch: SeriesBatch) -> Values:
    energy = batch.values * batch.values
    total = energy.sum(axis=1)
    parts = [part.sum(axis=1) for part in np.array_split(energy, _N_CHUNKS, axis=1)]
    return np.where(total[:, None] == 0, np.nan, np.stack(parts, axis=1) / total[:, None])


CALCULATORS: dict[str, Calculator] = {
    "longest_strike_below_mean": plain(_longest_strike_below_mean),
    "longest_strike_above_mean": plain(_longest_strike_above_mean),
    "count_above_mean": plain(_count_above_mean),
    "count_below_mean": plain(_count_below_mean),
    "last_location_of_maximum": plain(_last_location_of_maximum),
    "first_location_of_maximum": plain(_first_location_of_maximum),
    "last_location_of_minimum": plain(_last_location_of_minimum),
    "first_location_of_minimum": plain(_first_location_of_minimum),
    "number_peaks": Calculator(tuple(f"n_{n}" for n in _PEAK_SUPPORTS), _number_peaks),
    "index_mass_quantile": Calculator(tuple(f"q_{q}" for q in _MASS_QUANTILES), _index_mass_quantile),
    "value_count": Calculator(("value_0", "value_1", "value_-1"), _value_count),
    "range_count": Calculator(tuple(name for _, _, name in _RANGES), _range_count),
    "number_crossing_m": Calculator(("m_0", "m_-1", "m_1"), _number_crossing),
    "energy_ratio_by_chunks": Calculator(
        tuple(f"num_segments_{_N_CHUNKS}__segment_focus_{i}" for i in range(_N_CHUNKS)), _energy_ratio_by_chunks
    ),
    "count_above": Calculator(("t_0",), _count_above),
    "count_below": Calculator(("t_0",), _count_below),
}
