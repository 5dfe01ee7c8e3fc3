"""Three cheap encodings of a channel: a part of the series, statistics of all of it, its slowest frequencies.

After Weiss et al., "An Evaluation of Low Overhead Time Series Preprocessing Techniques for Downstream Machine Learning"
(2022, arXiv 2209.05300), as its abstract names them; how many samples and coefficients are taken is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.windows import FloatArray

N_SAMPLES = 60
N_COEFFICIENTS = 30

_SUMMARY = ("mean", "standard_deviation", "minimum", "median", "maximum")


def low_overhead_names(channels: Sequence[str]) -> list[str]:
    """Return the names of the columns of ``low_overhead``, for these channels.

    Examples
    --------
    >>> names = low_overhead_names(["power_w"])
    >>> names[0], names[60], names[-1]
    ('power_w__sample__n_0', 'power_w__mean', 'power_w__fft_coefficient__attr_"abs"__coeff_30')
    """
    ends = [
        *(f"sample__n_{i}" for i in range(N_SAMPLES)),
        *_SUMMARY,
        *(f'fft_coefficient__attr_"abs"__coeff_{k}' for k in range(1, N_COEFFICIENTS + 1)),
    ]
    return [f"{channel}__{end}" for channel in channels for end in ends]


def low_overhead(values: FloatArray) -> npt.NDArray[np.float64]:
    """The three encodings of each channel of each window, one after the other.

    The samples are the window's first 60, the coefficients the sizes of Fourier coefficients 1 to 30. What the window
    is too short for is NaN. A missing reading makes itself, the statistics and the coefficients NaN.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), missing readings NaN

    Returns
    -------
    array of shape (n_windows, n_channels * 95)
    """
    if values.ndim != 3:
        raise ValueError(f"values have {values.ndim} dimensions; give (n_windows, n_channels, n_samples)")
    n_windows, n_channels, n_samples = values.shape
    width = N_SAMPLES + len(_SUMMARY) + N_COEFFICIENTS
    out = np.full((n_windows, n_channels, width), np.nan)
    if n_samples:
        exact = values.astype(np.float64)
        kept = min(N_SAMPLES, n_samples)
        out[:, :, :kept] = exact[:, :, :kept]
        summary = (
            exact.mean(axis=2),
            exact.std(axis=2),
            exact.min(axis=2),
            np.median(exact, axis=2),
            exact.max(axis=2),
        )
        out[:, :, N_SAMPLES : N_SAMPLES + len(_SUMMARY)] = np.stack(summary, axis=2)
        size = np.abs(np.fft.rfft(exact, axis=2))[:, :, 1 : N_COEFFICIENTS + 1]
        out[:, :, N_SAMPLES + len(_SUMMARY) :][:, :, : size.shape[2]] = size
    return out.reshape(n_windows, n_channels * width)
