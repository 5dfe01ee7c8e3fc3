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
    "minimum",
    "maximum",
    *(f"quantile__q_{q}" for q in QUANTILES),
    "mean_abs_change",
)
"""The statistics in their order; the names and definitions are tsfresh's (``tsfresh.feature_extraction``)."""


def statistic_names(channels: Sequence[str]) -> list[str]:
    """Return the names of the columns of ``statistics``, for these channels.

    Examples
    --------
    >>> statistic_names(["power_w"])[-2:]
    ['power_w__quantile__q_0.9', 'power_w__mean_abs_change']
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
    if not n_samples:
        return np.full((n_windows, n_channels * len(STATISTICS)), np.nan)
    rising = np.sort(values.astype(np.float64), axis=2)  # NaN goes last
    count = n_samples - np.isnan(rising).sum(axis=2)
    base = rising[:, :, 0]  # levels in the thousands must not cost digits of a small spread
    offset = rising - base[:, :, None]
    mean = _mean(offset)
    deviation = np.sqrt(_mean((offset - mean[:, :, None]) ** 2))
    columns = [
        base + mean,
        deviation,
        base,
        _ranked(rising, count, 1.0),
        *(_ranked(rising, count, q) for q in QUANTILES),
        _mean(np.abs(np.diff(values.astype(np.float64), axis=2))),
    ]
    return np.stack(columns, axis=2).reshape(n_windows, n_channels * len(STATISTICS))


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    count = values.shape[2] - np.isnan(values).sum(axis=2)
    return np.where(count > 0, np.nansum(values, axis=2) / np.maximum(count, 1), np.nan)


def _ranked(rising: npt.NDArray[np.float64], count: npt.NDArray[np.int64], q: float) -> npt.NDArray[np.float64]:
    """Quantile ``q`` of the first ``count`` of each sorted row, by linear interpolation (numpy's default)."""
    place = q * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low = np.take_along_axis(rising, below[:, :, None], axis=2)[:, :, 0]
    high = np.take_along_axis(rising, above[:, :, None], axis=2)[:, :, 0]
    return low + (high - low) * (place - below)
