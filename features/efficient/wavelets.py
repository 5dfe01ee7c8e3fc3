"""Wavelet features: coefficients of the Mexican hat near the start, and peaks that last over several widths."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from features.efficient.arithmetic import sorts_before
from features.efficient.series import Calculator, SeriesBatch, Values
from features.kernel import kernel

_WIDTHS = (2, 5, 10, 20)
_N_COEFFICIENTS = 15
_HAT_REACH, _HAT_POINTS = 8.0, 4096
_PEAK_WIDTHS = (1, 5)
_TAPS_PER_WIDTH = 10
_NOISE_SHARE = 0.1
_GAP_ROWS = 1


@lru_cache(maxsize=len(_WIDTHS))
def _hat_integral(width: int) -> Values:
    """The integral of the Mexican hat, sampled for a width, reversed (the discretisation is PyWavelets')."""
    x = np.linspace(-_HAT_REACH, _HAT_REACH, _HAT_POINTS)
    hat = (1 - x**2) * np.exp(-(x**2) / 2) * 2 / (math.sqrt(3) * math.pi**0.25)
    step = x[1] - x[0]
    integral = np.cumsum(hat) * step
    places = (np.arange(width * (x[-1] - x[0]) + 1) / (width * step)).astype(int)
    return np.ascontiguousarray(integral[places[places < _HAT_POINTS]][::-1])


def _cwt_coefficients(batch: SeriesBatch) -> Values:
    count = min(_N_COEFFICIENTS, batch.n_samples)
    out = np.full((batch.n_series, _N_COEFFICIENTS, len(_WIDTHS)), np.nan)
    for k, width in enumerate(_WIDTHS):
        out[:, :count, k] = _hat_transform(batch.values, _hat_integral(width), count) * -math.sqrt(width)
    return out.reshape(batch.n_series, -1)


@kernel
def _hat_transform(values: Values, hat: Values, count: int) -> Values:
    """The first ``count`` differences in the middle of each series' convolution with ``hat``.

    Products are added as ``numpy.convolve`` adds them, along the longer of the two: near a start without events these
    differences are little more than the rounding of their sums.
    """
    n_series, n_samples = values.shape
    out = np.empty((n_series, count))
    first = (len(hat) - 2) // 2
    backward = hat[::-1].copy()
    for i in range(n_series):
        one, other = values[i], backward
        if len(hat) > n_samples:
            one, other = hat, values[i][::-1].copy()
        before = 0.0
        for k in range(first, first + count + 1):
            start, end = max(0, k + 1 - len(other)), min(k + 1, len(one))
            shift = len(other) - 1 - k
            now = np.dot(one[start:end], other[start + shift : end + shift])
            if k > first:
                out[i, k - first - 1] = now - before
            before = now
    return out


@lru_cache(maxsize=8)
def _ricker(points: int, width: int) -> Values:
    """The Ricker wavelet on ``points`` samples."""
    square = (np.arange(points) - (points - 1.0) / 2) ** 2
    scale = 2 / (math.sqrt(3 * width) * math.pi**0.25)
    return np.asarray(scale * (1 - square / width**2) * np.exp(-square / (2 * width**2)))


def _number_cwt_peaks(batch: SeriesBatch) -> Values:
    n = batch.n_samples
    widest = max(_PEAK_WIDTHS)
    lengths = [min(_TAPS_PER_WIDTH * width, n) for width in range(1, widest + 1)]
    taps = np.zeros((widest, max(lengths)))
    for row, length in enumerate(lengths):
        taps[row, :length] = _ricker(length, row + 1)
    return _ridge_counts(batch.values, taps, np.array(lengths), np.array(_PEAK_WIDTHS))


@kernel
def _convolve_same(series: Values, taps: Values, length: int, out: Values) -> None:
    """Convolution with a symmetric kernel, as long as the series; products are added tap by tap."""
    n_samples = len(series)
    lead = length // 2  # numpy's "same": the output starts so many samples into the full convolution
    out[:] = 0.0
    for j in range(length):
        shift, tap = j - lead, taps[j]
        first = max(0, -shift)
        count = min(n_samples, n_samples - shift) - first
        target, source = out[first : first + count], series[first + shift : first + shift + count]
        for t in range(count):
            target[t] += tap * source[t]


@kernel
def _noise_floor(row: Values, place: int, room: Values) -> float:
    """The tenth percentile of what surrounds a sample within a twentieth of the series."""
    n_samples = len(row)
    window = math.ceil(n_samples / 20)
    start = max(place - window // 2, 0)
    count = min(place + window // 2 + window % 2, n_samples) - start
    rank = _NOISE_SHARE * (count - 1)
    below = int(rank)
    kept = 0
    for t in range(start, start + count):  # an insertion sort that keeps the least values only
        value = row[t]
        if kept == below + 2 and not sorts_before(value, room[kept - 1]):
            continue
        j = kept - 1 if kept == below + 2 else kept
        while j > 0 and sorts_before(value, room[j - 1]):
            room[j] = room[j - 1]
            j -= 1
        room[j] = value
        kept = min(kept + 1, below + 2)
    if rank == below:
        return float(room[below])
    low, high = below + 1 - rank, rank - below
    return float((room[below] * low + room[below + 1] * high) / (low + high))


@kernel
def _ridge_counts(
    values: Values, taps: Values, lengths: npt.NDArray[np.int64], widths: npt.NDArray[np.int64]
) -> Values:
    """Count the ridges of local maxima through the rows of a wavelet transform that last and stand out.

    The method is Du, Kibbe and Lin's (Bioinformatics 2006), with the limits of ``scipy.signal.find_peaks_cwt``.
    """
    n_series, n_samples = values.shape
    n_rows = len(taps)
    out = np.zeros((n_series, len(widths)))
    transform = np.empty((n_rows, n_samples))
    is_peak = np.zeros((n_rows, n_samples), np.bool_)
    room = np.empty(n_samples + 2)
    at = np.empty(n_samples, np.int64)
    lines = np.empty((4, n_rows * n_samples), np.int64)
    column, row_of, seen = lines[0], lines[1], lines[2]
    for i in range(n_series):
        for r in range(n_rows):
            _convolve_same(values[i], taps[r], lengths[r], transform[r])
            for t in range(1, n_samples - 1):
                is_peak[r, t] = (transform[r, t] > transform[r, t + 1]) & (transform[r, t] > transform[r, t - 1])
        for k in range(len(widths)):
            n_lines = _ridge_lines(is_peak[: widths[k]], lines, at)
            least = math.ceil(widths[k] / 4)
            for line in range(n_lines):
                if seen[line] >= least:
                    noise = _noise_floor(transform[0], column[line], room)
                    out[i, k] += not abs(transform[row_of[line], column[line]] / noise) < 1
    return out


@kernel
def _ridge_lines(is_peak: npt.NDArray[np.bool_], lines: npt.NDArray[np.int64], at: npt.NDArray[np.int64]) -> int:
    """Join maxima of neighbouring rows to lines, from the widest row down; return how many lines there are.

    Filled are, of each line, its last column, its last row, how many maxima it has, and how many rows it has missed. A
    line that misses more than one row ends.
    """
    column, row_of, seen, gap = lines[0], lines[1], lines[2], lines[3]
    n_rows, n_samples = is_peak.shape
    n_lines = 0
    for r in range(n_rows - 1, -1, -1):
        at[:] = -1
        known = n_lines
        for line in range(known):
            if gap[line] <= _GAP_ROWS:
                gap[line] += 1
                if at[column[line]] < 0:
                    at[column[line]] = line
        reach = (r + 1) / 4.0
        for t in range(n_samples):
            if not is_peak[r, t]:
                continue
            found = at[t]
            if found < 0 and reach >= 1.0:
                for other in (t - 1, t + 1):
                    if 0 <= other < n_samples and at[other] >= 0 and (found < 0 or at[other] < found):
                        found = at[other]
            if found < 0:
                found = n_lines
                n_lines += 1
                seen[found] = 0
            column[found], row_of[found], gap[found] = t, r, 0
            seen[found] += 1
    return n_lines


CALCULATORS: dict[str, Calculator] = {
    "number_cwt_peaks": Calculator(tuple(f"n_{n}" for n in _PEAK_WIDTHS), _number_cwt_peaks),
    "cwt_coefficients": Calculator(
        tuple(
            f"coeff_{coefficient}__w_{width}__widths_{_WIDTHS}"
            for coefficient in range(_N_COEFFICIENTS)
            for width in _WIDTHS
        ),
        _cwt_coefficients,
    ),
}
