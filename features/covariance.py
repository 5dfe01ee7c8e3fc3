"""The challenge's covariance features: how the sensors of one window move together.

For the challenge's seven sensors they are 28: the upper triangle of the covariance matrix, diagonal included (Tang et
al. 2022, arXiv 2204.05839). How high a sensor stands does not enter. The challenge standardises each sensor over all
training windows first. That is *fitted*, so it belongs to an estimator; it multiplies each feature by a constant, which
no tree notices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.windows import FloatArray


def covariance_names(channels: Sequence[str]) -> list[str]:
    """Return the names of the columns of ``covariance``, for these channels.

    Examples
    --------
    >>> covariance_names(["gpu_util_pct", "power_w"])[1]
    'gpu_util_pct__covariance__with_power_w'
    """
    return [f"{one}__covariance__with_{other}" for i, one in enumerate(channels) for other in channels[i:]]


def covariance(values: FloatArray) -> npt.NDArray[np.float64]:
    """Covariance of each pair of channels within each window, over the samples that both channels have.

    A constant channel has the covariance 0, exactly. A pair with fewer than two samples in common has NaN: nothing is
    known of it, which is not zero.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), missing readings NaN

    Returns
    -------
    array of shape (n_windows, n_channels * (n_channels + 1) / 2)
        In units of one channel times the other, divided by n - 1 as ``numpy.cov`` does.
    """
    if values.ndim != 3:
        raise ValueError(f"values have {values.ndim} dimensions; give (n_windows, n_channels, n_samples)")
    upper = np.triu_indices(values.shape[1])
    # Subtracting a reading of its own first makes a constant channel exact, and large levels harmless.
    moved = values.astype(np.float64)
    if values.shape[2]:
        moved -= np.fmin.reduce(moved, axis=2, keepdims=True)
    whole = ~np.isnan(moved).any(axis=(1, 2))
    if whole.all():
        return _of_whole(moved)[:, upper[0], upper[1]]
    out = np.empty((len(moved), len(upper[0])))
    out[whole] = _of_whole(moved[whole])[:, upper[0], upper[1]]
    out[~whole] = _of_incomplete(moved[~whole])[:, upper[0], upper[1]]
    return out


def _of_whole(moved: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The matrices of windows without a missing reading, which are overwritten."""
    n_samples = moved.shape[2]
    if n_samples < 2:
        return np.full((len(moved), moved.shape[1], moved.shape[1]), np.nan)
    moved -= moved.mean(axis=2, keepdims=True)
    return np.asarray(np.matmul(moved, moved.swapaxes(1, 2)) / (n_samples - 1.0))


def _of_incomplete(moved: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The matrices of windows that lack readings, each pair over the samples that both channels have."""
    have = ~np.isnan(moved)
    present = have.astype(np.float64)
    moved = np.where(have, moved, 0.0)
    count = np.matmul(present, present.swapaxes(1, 2))
    of_each = np.matmul(moved, present.swapaxes(1, 2))  # [i, j]: sum of channel i over what it shares with j
    product = of_each * of_each.swapaxes(1, 2) / np.maximum(count, 1.0)
    total = np.matmul(moved, moved.swapaxes(1, 2)) - product
    enough = count > 1.0
    return np.where(enough, total / np.where(enough, count - 1.0, 1.0), np.nan)
