"""The spectrum of a series: Fourier coefficients, their moments, Welch's density and its entropy."""

from __future__ import annotations

import numpy as np

from features.efficient.repeats import histogram_entropies
from features.efficient.series import Calculator, SeriesBatch, Values

_N_COEFFICIENTS = 100
_ATTRIBUTES = ("real", "imag", "abs", "angle")
_WELCH_COEFFICIENTS = (2, 5, 8)
_WELCH_LENGTH = 256
_ENTROPY_BINS = (2, 3, 5, 10, 100)
_LEAST_VARIANCE = 0.5


def _transform(batch: SeriesBatch) -> Values:
    """The real part, the imaginary part and the size of each Fourier coefficient, one after the other."""
    transform = np.fft.rfft(batch.values, axis=1)
    return np.stack([transform.real, transform.imag, np.abs(transform)])


def _fft_coefficient(batch: SeriesBatch) -> Values:
    real, imag, size = batch.once(_transform)[:, :, :_N_COEFFICIENTS]
    out = np.full((batch.n_series, len(_ATTRIBUTES), _N_COEFFICIENTS), np.nan)
    for k, part in enumerate((real, imag, size, np.degrees(np.arctan2(imag, real)))):
        out[:, k, : part.shape[1]] = part
    return out.reshape(batch.n_series, -1)


def _fft_aggregated(batch: SeriesBatch) -> Values:
    """Centroid, variance, skew and kurtosis of the amplitudes over the numbers of their frequencies."""
    size = batch.once(_transform)[2]
    powers = np.arange(size.shape[1], dtype=float)[:, None] ** np.arange(1, 5)
    first, second, third, fourth = ((size @ powers) / size.sum(axis=1, keepdims=True)).T
    variance = second - first**2
    known = np.where(variance < _LEAST_VARIANCE, np.nan, variance)
    skew = (third - 3 * first * known - first**3) / known**1.5
    kurtosis = (fourth - 4 * first * third + 6 * second * first**2 - 3 * first) / known**2
    return np.stack([first, variance, skew, kurtosis], axis=1)


def _welch(batch: SeriesBatch) -> Values:
    """Welch's density: Hann windows of 256 samples, half overlapping, each less its mean (scipy's defaults)."""
    length = min(batch.n_samples, _WELCH_LENGTH)
    hop = length - length // 2
    pieces = np.lib.stride_tricks.sliding_window_view(batch.values, length, axis=1)[:, ::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length) if length > 1 else np.ones(1)
    level = pieces - pieces.mean(axis=2, keepdims=True)
    transform = np.fft.rfft(level * window, axis=2)
    density = (transform.real**2 + transform.imag**2) / (window * window).sum()
    density[:, :, 1 : None if length % 2 else -1] *= 2
    return np.asarray(density.mean(axis=1))


def _spkt_welch_density(batch: SeriesBatch) -> Values:
    density = batch.once(_welch)
    out = np.full((batch.n_series, len(_WELCH_COEFFICIENTS)), np.nan)
    for k, place in enumerate(_WELCH_COEFFICIENTS):
        if place < density.shape[1]:
            out[:, k] = density[:, place]
    return out


def _fourier_entropy(batch: SeriesBatch) -> Values:
    density = batch.once(_welch)
    return histogram_entropies(density / density.max(axis=1, keepdims=True), np.array(_ENTROPY_BINS))


CALCULATORS: dict[str, Calculator] = {
    "spkt_welch_density": Calculator(tuple(f"coeff_{k}" for k in _WELCH_COEFFICIENTS), _spkt_welch_density),
    "fft_coefficient": Calculator(
        tuple(f'attr_"{attribute}"__coeff_{k}' for attribute in _ATTRIBUTES for k in range(_N_COEFFICIENTS)),
        _fft_coefficient,
    ),
    "fft_aggregated": Calculator(
        tuple(f'aggtype_"{name}"' for name in ("centroid", "variance", "skew", "kurtosis")), _fft_aggregated
    ),
    "fourier_entropy": Calculator(tuple(f"bins_{bins}" for bins in _ENTROPY_BINS), _fourier_entropy),
}
