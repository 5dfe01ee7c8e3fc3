"""How often values come again: duplicates, distinct values, leading digits, the entropy of a histogram."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from features.efficient.arithmetic import pairwise_sum
from features.efficient.series import Calculator, SeriesBatch, Values, plain
from features.kernel import kernel

_HISTOGRAM_BINS = 10
_DIGITS = np.arange(1, 10)
_LEADING = np.array([float(f"{digit}e{power}") for power in range(-324, 309) for digit in range(1, 10)][:-8])
"""Every d × 10^k that a double can hold, rising: the place of a number among them gives its first decimal digit."""
_LEADING_FROM = np.searchsorted(_LEADING, np.ldexp(1.0, np.arange(-1074, 1024)), side="right")
"""How many of them are not above each power of two."""


def _has_duplicate_max(batch: SeriesBatch) -> npt.NDArray[np.bool_]:
    if batch.n_samples < 2:
        return np.zeros(batch.n_series, dtype=bool)
    return np.asarray(batch.rising[:, -1] == batch.rising[:, -2])  # NaN equals nothing


def _has_duplicate_min(batch: SeriesBatch) -> npt.NDArray[np.bool_]:
    if batch.n_samples < 2:
        return np.zeros(batch.n_series, dtype=bool)
    return np.asarray(~batch.absent & (batch.rising[:, 0] == batch.rising[:, 1]))


def _found(batch: SeriesBatch) -> Values:
    return _distinct(batch.rising)


@kernel
def _distinct(rising: Values) -> Values:
    """Of each sorted series: distinct values, and those that come again; samples that come again, and both sums.

    NaN counts as one value, but a repeated NaN is no repeated sample (tsfresh takes these from numpy and from pandas).
    """
    n_series, n_samples = rising.shape
    out = np.empty((n_series, 5))
    once, often = np.empty(n_samples), np.empty(n_samples)
    for i in range(n_series):
        distinct = repeated = samples = 0
        t = 0
        while t < n_samples:
            value = rising[i, t]
            end = t + 1
            while end < n_samples and (rising[i, end] == value or np.isnan(value)):
                end += 1
            count = end - t
            once[distinct] = value * (1 if count > 1 else 0)
            often[distinct] = value * (count if count > 1 else 0)
            distinct += 1
            if count > 1:
                repeated += 1
                samples += 0 if np.isnan(value) else count
            t = end
        out[i, 0], out[i, 1], out[i, 2] = distinct, repeated, samples
        out[i, 3] = pairwise_sum(once, 0, distinct)
        out[i, 4] = pairwise_sum(often, 0, distinct)
    return out


def _has_duplicate(batch: SeriesBatch) -> npt.NDArray[np.bool_]:
    return np.asarray(batch.once(_found)[:, 0] != batch.n_samples)


def _share_of_values(batch: SeriesBatch) -> Values:
    found = batch.once(_found)
    return found[:, 1] / found[:, 0]


def _share_of_samples(batch: SeriesBatch) -> Values:
    return np.asarray(batch.once(_found)[:, 2] / batch.n_samples)


def _sum_of_values(batch: SeriesBatch) -> Values:
    return batch.once(_found)[:, 3]


def _sum_of_samples(batch: SeriesBatch) -> Values:
    return batch.once(_found)[:, 4]


def _distinct_share(batch: SeriesBatch) -> Values:
    return np.asarray(batch.once(_found)[:, 0] / batch.n_samples)


def _benford_correlation(batch: SeriesBatch) -> Values:
    """Correlation of the frequencies of the first digits with Benford's law."""
    shares = _first_digits(batch.values, _LEADING, _LEADING_FROM) / batch.n_samples
    law = np.log10(1 + 1 / _DIGITS)
    law -= law.mean()
    shares -= shares.mean(axis=1, keepdims=True)
    return np.asarray((shares @ law) / np.sqrt((shares * shares).sum(axis=1) * (law * law).sum()))


@kernel
def _first_digits(values: Values, leading: Values, leading_from: npt.NDArray[np.int64]) -> Values:
    """How often each decimal digit from 1 to 9 comes first in the shortest notation of a sample; NaN counts as zero."""
    n_series, n_samples = values.shape
    out = np.zeros((n_series, 9))
    for i in range(n_series):
        for t in range(n_samples):
            size = abs(values[i, t])
            if not size > 0.0:
                continue
            if size == np.inf:
                out[i, 0] += 1
                continue
            power = math.frexp(size)[1] - 1
            place = leading_from[power + 1074]
            while place < len(leading) and leading[place] <= size:
                place += 1
            out[i, (place - 1) % 9] += 1
    return out


def _binned_entropy(batch: SeriesBatch) -> Values:
    return histogram_entropies(batch.values, np.array([_HISTOGRAM_BINS]))[:, 0]


@kernel
def _even_edges(low: float, high: float, edges: Values) -> bool:
    """Fill in the edges of equal bins, as ``numpy.linspace`` spaces them; False if two fall together."""
    n_bins = len(edges) - 1
    step = (high - low) / n_bins
    for b in range(n_bins):
        edges[b] = b * step + low
    edges[n_bins] = high
    rising = np.isfinite(step)
    for b in range(n_bins):
        rising &= edges[b] < edges[b + 1]
    return bool(rising)


@kernel
def histogram_entropies(values: Values, bins: npt.NDArray[np.int64]) -> Values:
    """Entropy of the histograms of each row, with equal bins from the least to the greatest value, as numpy bins.

    NaN where a value is not finite, or where the bins would be narrower than numbers can be.
    """
    n_rows, n_values = values.shape
    out = np.full((n_rows, len(bins)), np.nan)
    counts = np.empty(bins.max(), np.int64)
    edges = np.empty(bins.max() + 1)
    for i in range(n_rows):
        low = high = values[i, 0]
        finite = True
        for t in range(n_values):
            low, high = min(low, values[i, t]), max(high, values[i, t])
            finite &= np.isfinite(values[i, t])
        if not finite:
            continue
        if low == high:
            low, high = low - 0.5, high + 0.5
        for k in range(len(bins)):
            n_bins = bins[k]
            if not _even_edges(low, high, edges[: n_bins + 1]):
                continue
            width = high - low
            counts[:n_bins] = 0
            for t in range(n_values):
                value = values[i, t]
                b = int((value - low) / width * n_bins)
                if b == n_bins:
                    b -= 1
                if value < edges[b]:
                    b -= 1
                elif value >= edges[b + 1] and b != n_bins - 1:
                    b += 1
                counts[b] += 1
            entropy = 0.0
            for b in range(n_bins):
                if counts[b]:
                    share = counts[b] / n_values
                    entropy += share * np.log(share)
            out[i, k] = -entropy
    return out


CALCULATORS: dict[str, Calculator] = {
    "has_duplicate_max": plain(_has_duplicate_max),
    "has_duplicate_min": plain(_has_duplicate_min),
    "has_duplicate": plain(_has_duplicate),
    "percentage_of_reoccurring_values_to_all_values": plain(_share_of_values),
    "percentage_of_reoccurring_datapoints_to_all_datapoints": plain(_share_of_samples),
    "sum_of_reoccurring_values": plain(_sum_of_values),
    "sum_of_reoccurring_data_points": plain(_sum_of_samples),
    "ratio_value_number_to_time_series_length": plain(_distinct_share),
    "benford_correlation": plain(_benford_correlation),
    "binned_entropy": Calculator((f"max_bins_{_HISTOGRAM_BINS}",), _binned_entropy),
}
