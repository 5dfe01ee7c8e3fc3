"""How a channel repeats itself: its spectrum, its autocorrelation, and the period of what is probably an iteration.

A training job does the same work over and over. The period of that shows in its power draw and utilisation as a peak of
the autocorrelation, unless it is shorter than some two samples or longer than half of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.windows import FloatArray

_LAGS = (1, 2, 4, 8, 16, 32)
_N_OCTAVES = 6
_ALMOST_HIGHEST = 0.9

FEATURES = (
    "spectrum_centroid_hz",
    "spectrum_entropy",
    "spectrum_peak_hz",
    "spectrum_peak_share",
    *(f"spectrum_share__octave_{octave}" for octave in range(1, _N_OCTAVES + 1)),
    *(f"autocorrelation__lag_{lag}" for lag in _LAGS),
    "period_s",
    "period_strength",
)
"""The features in their order. Octave 1 is the upper half of the spectrum, octave 2 the upper half of the rest, ..."""

_WINDOWS_AT_ONCE = 64


def spectral_names(channels: Sequence[str]) -> list[str]:
    """Return the names of the columns of ``spectral``, for these channels.

    Examples
    --------
    >>> spectral_names(["power_w"])[-2:]
    ['power_w__period_s', 'power_w__period_strength']
    """
    return [f"{channel}__{feature}" for channel in channels for feature in FEATURES]


def spectral(values: FloatArray, samples_per_s: float | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Spectral features of each channel of each window, of samples taken as evenly spaced.

    A constant has none (NaN), nor has a channel with a missing or infinite reading, nor one of fewer than four samples.
    A series without a maximum of its autocorrelation above zero has no period. A window whose rate is NaN has no
    feature in hertz or seconds.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), missing readings NaN
    samples_per_s : how many samples a second holds, one for all or one for each window (``Windows.samples_per_s``)

    Returns
    -------
    array of shape (n_windows, n_channels * len(FEATURES))
    """
    if values.ndim != 3:
        raise ValueError(f"values have {values.ndim} dimensions; give (n_windows, n_channels, n_samples)")
    n_windows, n_channels, n_samples = values.shape
    rates = np.asarray(samples_per_s, dtype=np.float64)
    if rates.shape not in ((), (n_windows,)):
        raise ValueError(
            f"samples_per_s has shape {rates.shape}; give one number, or one for each of {n_windows} windows"
        )
    if (wrong := rates[(rates <= 0) | np.isinf(rates)]).size or (rates.shape == () and np.isnan(rates)):
        found = wrong.flat[0] if wrong.size else rates
        raise ValueError(f"samples_per_s is {found}; give a rate above 0 (the challenge uses 9)")
    rates = np.broadcast_to(rates, n_windows)
    out = np.full((n_windows, n_channels, len(FEATURES)), np.nan)
    if n_samples >= 4:
        for start in range(0, n_windows, _WINDOWS_AT_ONCE):
            part = slice(start, start + _WINDOWS_AT_ONCE)
            with np.errstate(all="ignore"):  # NaN is an answer here
                out[part] = _of_windows(values[part].astype(np.float64), rates[part, None])
    return out.reshape(n_windows, n_channels * len(FEATURES))


def _of_windows(values: npt.NDArray[np.float64], samples_per_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    n_samples = values.shape[2]
    offset = values - values[:, :, :1]  # a constant of any level has exactly no power
    offset /= np.abs(offset).max(axis=2, keepdims=True)  # nor is any too large or too small to be squared
    offset -= offset.mean(axis=2, keepdims=True)
    offset[(values == values[:, :, :1]).all(axis=2)] = np.nan
    # Padded with zeros, so that the end of the series is not correlated with its start.
    transform = np.fft.rfft(offset, 2 * n_samples, axis=2)
    power = transform.real**2 + transform.imag**2
    correlation = np.fft.irfft(power, axis=2)[:, :, :n_samples]
    correlation /= (n_samples - np.arange(n_samples)) / n_samples
    correlation /= correlation[:, :, :1]

    share = power[:, :, 2::2]  # the frequencies of the series itself, without the constant
    share = share / share.sum(axis=2, keepdims=True)
    cycles = np.arange(1, share.shape[2] + 1)
    hz = samples_per_s / n_samples
    peak = np.where(np.isnan(share[:, :, 0]), 0, share.argmax(axis=2))
    known = np.where(np.isnan(share[:, :, 0]), np.nan, 1.0)
    columns = [
        (share @ cycles) * hz,
        -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=2) / math.log(max(share.shape[2], 2)),
        cycles[peak] * known * hz,
        share.max(axis=2),
        *(_octave_share(share, octave) for octave in range(1, _N_OCTAVES + 1)),
        *(correlation[:, :, lag] if lag < n_samples else np.full(known.shape, np.nan) for lag in _LAGS),
        *_period(correlation, samples_per_s),
    ]
    return np.stack(columns, axis=2)


def _octave_share(share: npt.NDArray[np.float64], octave: int) -> npt.NDArray[np.float64]:
    """Share of the power in one octave; NaN where the window is too short to have a frequency there."""
    n = share.shape[2]
    first, end = math.floor(n / 2**octave), math.floor(n / 2 ** (octave - 1))
    if first == end:
        return np.full(share.shape[:2], np.nan)
    return np.asarray(share[:, :, first:end].sum(axis=2))


def _period(
    correlation: npt.NDArray[np.float64], samples_per_s: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The lag of a maximum of the autocorrelation, and how high it is; NaN where there is none.

    Maxima count from the first fall below zero up to half of the window. Every multiple of a period is one too, so the
    first that reaches nine tenths of the highest is taken; a period of a few samples and a fraction can come out as its
    multiple. The lag is that of the parabola through the maximum and its neighbours.
    """
    inner = correlation[:, :, 1 : correlation.shape[2] // 2 + 1]
    middle = inner[:, :, 1:-1]
    nothing = np.full(correlation.shape[:2], np.nan)
    if not middle.shape[2]:
        return nothing, nothing
    fallen = np.logical_or.accumulate(middle < 0, axis=2)
    is_peak = (middle > inner[:, :, :-2]) & (middle >= inner[:, :, 2:]) & fallen & (middle > 0)
    height = np.where(is_peak, middle, -np.inf)
    place = (height >= _ALMOST_HIGHEST * height.max(axis=2, keepdims=True)).argmax(axis=2)[:, :, None]
    before, top, after = (np.take_along_axis(inner, place + k, axis=2)[:, :, 0] for k in range(3))
    bend = before - 2 * top + after
    shift = np.where(bend < 0, (before - after) / 2 / np.where(bend < 0, bend, -1.0), 0.0)
    found = is_peak.any(axis=2)
    return np.where(found, (place[:, :, 0] + 2 + shift) / samples_per_s, nothing), np.where(found, top, nothing)
