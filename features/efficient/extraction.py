"""All calculators, and their run over windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.efficient import (
    autoregression,
    changes,
    complexity,
    correlation,
    counts,
    dynamics,
    levels,
    repeats,
    spectrum,
    trends,
    wavelets,
)
from features.efficient.series import Calculator, SeriesBatch, Values

_SERIES_AT_ONCE = 448
"""Series of one batch: enough to keep numpy busy, few enough for the cache."""


def _query_similarity_count(batch: SeriesBatch) -> Values:
    """Always NaN: tsfresh's efficient set asks for the similarity with no query."""
    return np.full(batch.n_series, np.nan)


CALCULATORS: dict[str, Calculator] = {
    **levels.CALCULATORS,
    **repeats.CALCULATORS,
    **changes.CALCULATORS,
    **counts.CALCULATORS,
    **spectrum.CALCULATORS,
    **correlation.CALCULATORS,
    **wavelets.CALCULATORS,
    **autoregression.CALCULATORS,
    **trends.CALCULATORS,
    **complexity.CALCULATORS,
    **dynamics.CALCULATORS,
    "query_similarity_count": Calculator(("query_None__threshold_0.0",), _query_similarity_count),
}
"""tsfresh's calculators by name. A new one is a line in the table of its family."""


def efficient_names(
    channels: Sequence[str], *, timewise: bool = False, calculators: Sequence[str] | None = None
) -> list[str]:
    """Return the names of the columns of ``efficient``, for these channels; ``timewise`` where times are given.

    Examples
    --------
    >>> efficient_names(["power_w"])[0], len(efficient_names(["power_w"]))
    ('power_w__variance_larger_than_standard_deviation', 777)
    """
    ends = [
        "__".join(filter(None, (name, end))) for name, one in _used(timewise, calculators) for end in one.parameters
    ]
    return [f"{channel}__{end}" for channel in channels for end in ends]


def efficient(
    values: npt.NDArray[np.floating],
    time_s: npt.NDArray[np.floating] | None = None,
    calculators: Sequence[str] | None = None,
) -> npt.NDArray[np.float64]:
    """Every feature of tsfresh's efficient set, of each channel of each window.

    NaN comes back where tsfresh's calculator gives NaN or raises: a constant has no autocorrelation, a short series no
    Fourier coefficient 99. Missing readings (NaN) are worth what each calculator makes of them, mostly NaN.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), missing readings NaN
    time_s : seconds of each sample, of shape (n_windows, n_samples); with it come five more columns a channel, the
        linear trend over time, as tsfresh gives them to series with an index of times
    calculators : tsfresh's names of those that are wanted, in whatever order; all unless given

    Returns
    -------
    array of shape (n_windows, n_channels * features), its columns named by ``efficient_names``
    """
    if values.ndim != 3:
        raise ValueError(f"values have {values.ndim} dimensions; give (n_windows, n_channels, n_samples)")
    n_windows, n_channels, n_samples = values.shape
    if time_s is not None and time_s.shape != (n_windows, n_samples):
        raise ValueError(f"time_s has shape {time_s.shape}; give {(n_windows, n_samples)}, as the windows have it")
    used = [one for _, one in _used(time_s is not None, calculators)]
    n_features = sum(len(one.parameters) for one in used)
    out = np.full((n_windows * n_channels, n_features), np.nan)
    if n_samples:
        rows = values.reshape(-1, n_samples)
        time_h = None if time_s is None else (time_s - time_s[:, :1]).astype(np.float64) / 3600
        for start in range(0, len(rows), _SERIES_AT_ONCE):
            part = slice(start, start + _SERIES_AT_ONCE)
            series = np.ascontiguousarray(rows[part], dtype=np.float64)
            window = np.arange(start, start + len(series)) // n_channels
            batch = SeriesBatch(series, None if time_h is None else np.ascontiguousarray(time_h[window]))
            _fill(out[part], batch, used)
    return out.reshape(n_windows, n_channels * n_features)


def _used(timewise: bool, wanted: Sequence[str] | None) -> list[tuple[str, Calculator]]:
    unknown = sorted(set(wanted or ()) - set(CALCULATORS))
    if unknown:
        raise ValueError(f"no calculator is called {', '.join(unknown)}; choose among {', '.join(CALCULATORS)}")
    return [
        (name, one)
        for name, one in CALCULATORS.items()
        if (timewise or not one.needs_time) and (wanted is None or name in wanted)
    ]


def _fill(out: Values, batch: SeriesBatch, calculators: Sequence[Calculator]) -> None:
    """Write the features of a batch into the rows of ``out``."""
    column = 0
    with np.errstate(all="ignore"):  # NaN and infinity are answers here
        for calculator in calculators:
            width = len(calculator.parameters)
            out[:, column : column + width] = calculator.compute(batch).reshape(batch.n_series, width)
            column += width
