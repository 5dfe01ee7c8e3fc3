"""A few statistics of each channel of a window, by tsfresh's names and definitions, over the samples that there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.windows import FloatArray

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

STATISTICS = (
    "mean",
    "standard_deviation",
    "root_mean_square",
    "count_above_mean",
    "minimum",
    "maximum",
    *(f"quantile__q_{q}" for q in QUANTILES),
    "mean_abs_change",
    "cid_ce__normalize_False",
)
"""The statistics in their order; the names and definitions are tsfresh's (``tsfresh.feature_extraction``)."""

_WINDOWS_AT_ONCE = 64
"""So many windows of a minute and seven channels fit the cache."""


def statistic_names(channels: Sequence[str]) -> list[str]:
    """Return the names of the columns of ``statistics``, for these channels.

    Examples
    --------
    >>> statistic_names(["power_w"])[-2:]
    ['power_w__mean_abs_change', 'power_w__cid_ce__normalize_False']
    """
    return [f"{channel}__{statistic}" for channel in channels for statistic in STATISTICS]


def statistics(values: FloatArray) -> npt.NDArray[np.float64]:
    """Statistics of each channel of each window; a missing reading counts for nothing.

    A channel without a reading has NaN throughout; one without two readings side by side has no mean change.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), missing readings NaN

    Returns
    -------
    array of shape (n_windows, n_channels * len(STATISTICS))
    """
    if values.ndim != 3:
        raise ValueError(f"values have {values.ndim} dimensions; give (n_windows, n_channels, n_samples)")
    n_windows, n_channels, n_samples = values.shape
    out = np.full((n_windows, n_channels, len(STATISTICS)), np.nan)
    if n_samples:
        for start in range(0, n_windows, _WINDOWS_AT_ONCE):
            part = slice(start, start + _WINDOWS_AT_ONCE)
            out[part] = _of_windows(values[part])
    return out.reshape(n_windows, n_channels * len(STATISTICS))


def _of_windows(values: FloatArray) -> npt.NDArray[np.float64]:
    """The statistics of a few windows of at least one sample, shape (n_windows, n_channels, len(STATISTICS))."""
    rising = np.sort(values, axis=2)  # NaN goes last
    exact = values.astype(np.float64)
    absent = np.isnan(rising).sum(axis=2) if np.isnan(rising[:, :, -1]).any() else 0
    count = np.full(values.shape[:2], values.shape[2]) - absent
    base = rising[:, :, 0].astype(np.float64)  # levels in the thousands must not cost digits of a small spread
    offset = exact - base[:, :, None]
    mean = _mean(offset)
    above = np.where(count > 0, (offset > mean[:, :, None]).sum(axis=2), np.nan)
    offset -= mean[:, :, None]
    variance = _mean(np.square(offset, out=offset))
    step = np.diff(exact, axis=2)
    change = _mean(np.abs(step))
    n_steps = np.full(count.shape, step.shape[2]) if not np.any(absent) else (~np.isnan(step)).sum(axis=2)
    columns = [
        base + mean,
        np.sqrt(variance),
        np.sqrt((base + mean) ** 2 + variance),
        above,
        base,
        _ranked(rising, count, 1.0),
        *(_ranked(rising, count, q) for q in QUANTILES),
        change,
        np.sqrt(_mean(np.square(step, out=step)) * n_steps),
    ]
    return np.stack(columns, axis=2)


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    if values.shape[2]:
        mean = np.asarray(values.mean(axis=2))
        if not np.isnan(mean).any():
            return mean
    count = values.shape[2] - np.isnan(values).sum(axis=2)
    return np.where(count > 0, np.nansum(values, axis=2) / np.maximum(count, 1), np.nan)


def _ranked(rising: FloatArray, count: npt.NDArray[np.int64], q: float) -> npt.NDArray[np.float64]:
    """Quantile ``q`` of the first ``count`` of each sorted row, by linear interpolation (numpy's default)."""
    place = q * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low = np.take_along_axis(rising, below[:, :, None], axis=2)[:, :, 0].astype(np.float64)
    high = np.take_along_axis(rising, above[:, :, None], axis=2)[:, :, 0].astype(np.float64)
    return low + (high - low) * (place - below)
