"""How little a series repeats its patterns: Lempel and Ziv's complexity, and the entropy of its permutations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.efficient.arithmetic import sorts_before
from features.efficient.series import Calculator, SeriesBatch, Values
from features.kernel import kernel

_LEMPEL_ZIV_BINS = (2, 3, 5, 10, 100)
_DIMENSIONS = (3, 4, 5, 6, 7)


def _lempel_ziv_complexity(batch: SeriesBatch) -> Values:
    phrases = _phrases(batch.values, batch.minimum, batch.maximum, np.array(_LEMPEL_ZIV_BINS))
    return np.asarray(phrases / batch.n_samples)


@kernel
def _phrases(values: Values, low: Values, high: Values, bins: npt.NDArray[np.int64]) -> Values:
    """Count the phrases of Lempel and Ziv's parse (IEEE Transactions on Information Theory 1978) of each binned series.

    A phrase is the shortest stretch not seen as one before; the seen ones are the nodes of a tree.
    """
    n_series, n_samples = values.shape
    out = np.empty((n_series, len(bins)))
    symbols = np.empty(n_samples, np.int64)
    most = bins.max()
    edges = np.empty(most)
    child = np.empty((n_samples + 1) * (most + 1), np.int32)
    for i in range(n_series):
        for k in range(len(bins)):
            n_bins = bins[k]
            _bin_evenly(values[i], low[i], high[i], edges[:n_bins], symbols)
            width = n_bins + 1
            child[: (n_samples + 1) * width] = 0
            node = n_nodes = 0
            for t in range(n_samples):
                place = node * width + symbols[t]
                if child[place]:
                    node = child[place]
                else:
                    n_nodes += 1
                    child[place] = n_nodes
                    node = 0
            out[i, k] = n_nodes
    return out


@kernel
def _bin_evenly(series: Values, low: float, high: float, edges: Values, symbols: npt.NDArray[np.int64]) -> None:
    """The number of the equal bin of each sample, the upper edge belonging to it (``numpy.searchsorted``, left)."""
    n_bins = len(edges)
    step = (high - low) / n_bins
    for b in range(n_bins):
        edges[b] = (b + 1) * step + low
    edges[n_bins - 1] = high
    if step == 0.0 and high == low:
        edges[:] = low
    regular = np.isfinite(step) and step > 0.0
    for t in range(len(series)):
        value = series[t]
        if regular:
            b = min(max(int((value - low) / step), 0), n_bins - 1)
            while b > 0 and not edges[b - 1] < value:
                b -= 1
            while b < n_bins and edges[b] < value:
                b += 1
            symbols[t] = b
            continue
        start, end = 0, n_bins
        while start < end:
            middle = start + (end - start) // 2
            if sorts_before(edges[middle], value):
                start = middle + 1
            else:
                end = middle
        symbols[t] = start


def _permutation_entropy(batch: SeriesBatch) -> Values:
    return _pattern_entropies(batch.values, np.array(_DIMENSIONS))


@kernel
def _pattern_entropies(values: Values, dimensions: npt.NDArray[np.int64]) -> Values:
    """Entropy of the orders of neighbouring samples; of equal ones the earlier counts as the smaller."""
    n_series, n_samples = values.shape
    deepest = dimensions.max()
    out = np.full((n_series, len(dimensions)), np.nan)
    factorial = np.ones(deepest + 1, np.int64)
    for d in range(1, deepest + 1):
        factorial[d] = factorial[d - 1] * d
    smaller = np.zeros((deepest, n_samples), np.int64)  # [m, t]: how many of the m samples after t are smaller
    codes = np.empty(n_samples, np.int64)
    counts = np.zeros(factorial[deepest], np.int64)
    terms = np.zeros((len(dimensions), n_samples + 1))
    for k in range(len(dimensions)):
        n_patterns = n_samples - dimensions[k] + 1
        for c in range(1, n_patterns + 1):
            terms[k, c] = c / n_patterns * np.log(c / n_patterns)
    for i in range(n_series):
        x = values[i]
        for m in range(1, deepest):
            for t in range(n_samples - m):
                smaller[m, t] = smaller[m - 1, t] + sorts_before(x[t + m], x[t])
        for k in range(len(dimensions)):
            d = dimensions[k]
            n_patterns = n_samples - d + 1
            if n_patterns < 1:
                continue
            codes[:n_patterns] = 0
            for j in range(d - 1):
                for t in range(n_patterns):
                    codes[t] += smaller[d - 1 - j, t + j] * factorial[d - 1 - j]
            for t in range(n_patterns):
                counts[codes[t]] += 1
            entropy = 0.0
            for t in range(n_patterns):
                entropy += terms[k, counts[codes[t]]]
                counts[codes[t]] = 0
            out[i, k] = -entropy
    return out


CALCULATORS: dict[str, Calculator] = {
    "lempel_ziv_complexity": Calculator(tuple(f"bins_{bins}" for bins in _LEMPEL_ZIV_BINS), _lempel_ziv_complexity),
    "permutation_entropy": Calculator(tuple(f"dimension_{d}__tau_1" for d in _DIMENSIONS), _permutation_entropy),
}
