"""The feature set `tsfresh`: the library itself, its efficient settings, of the same windows, as a graph of dask tasks.

The graph runs in this thread (dask's synchronous scheduler): a task of an extraction has one core, and several at once
are what `ingest.runner` is for, be it a pool, a dask cluster or Slurm.
Slow (BENCHMARKS.md has how slow), and here to be compared with: `efficient` has the same columns at the same values.
Importing tsfresh takes seconds, so that happens when the first window comes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from features.windows import FloatArray

_PARTITION_SERIES = 64
_KIND = "x"


def tsfresh_names(channels: Sequence[str]) -> list[str]:
    """Return tsfresh's names of its columns, in its order, for these channels."""
    return [f"{channel}__{end}" for channel in channels for end in _ends()]


def tsfresh(values: FloatArray, channels: Sequence[str]) -> npt.NDArray[np.float64]:
    """What tsfresh's own calculators give for each channel of each window.

    A calculator that raises takes its series' features with it in tsfresh; here they are NaN.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), without missing readings: tsfresh would count them as
        readings, so a channel that lacks one has NaN throughout

    Returns
    -------
    array of shape (n_windows, n_columns), its columns named by ``tsfresh_names``
    """
    import dask

    if values.ndim != 3 or values.shape[1] != len(channels):
        raise ValueError(f"values have shape {values.shape}; give (n_windows, {len(channels)} channels, n_samples)")
    series = values.reshape(-1, values.shape[2]).astype(np.float64)
    whole = np.flatnonzero(~np.isnan(series).any(axis=1)) if series.shape[1] else np.empty(0, np.int64)
    out = np.full((len(series), len(_ends())), np.nan)
    parts = [whole[at : at + _PARTITION_SERIES] for at in range(0, len(whole), _PARTITION_SERIES)]
    found = dask.compute(*[dask.delayed(_calculate)(series[part]) for part in parts], scheduler="synchronous")
    for part, rows in zip(parts, found, strict=True):
        out[part] = rows
    return out.reshape(len(values), -1)


@cache
def _ends() -> tuple[str, ...]:
    """What tsfresh calls its columns, without the channel: it says so itself, of a series long enough for all."""
    found = _extract(np.sin(np.arange(64.0) ** 1.5)[None], _settings())
    return tuple(str(name).removeprefix(f"{_KIND}__") for name in found.columns)


def _settings() -> dict[str, Any]:
    from tsfresh.feature_extraction.settings import EfficientFCParameters

    return dict(EfficientFCParameters())


def _calculate(series: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The features of some series, array of shape (n_series, len(_ends()))."""
    try:
        return _in_order(_extract(series, _settings()))
    except Exception:  # noqa: BLE001  # a calculator raises whatever it likes, and tsfresh gives nothing then
        if len(series) > 1:
            return np.concatenate([_calculate(one[None]) for one in series])
        return _one_by_one(series)


def _one_by_one(series: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The features of one series, without those of the calculators that raise."""
    out = np.full((1, len(_ends())), np.nan)
    for name, parameters in _settings().items():
        try:
            found = _in_order(_extract(series, {name: parameters}))
        except Exception:  # noqa: BLE001  # as above
            continue
        out = np.where(np.isnan(found), out, found)
    return out


def _extract(series: npt.NDArray[np.float64], settings: dict[str, Any]) -> Any:
    """tsfresh's own table (pandas): a row a series, a column a feature."""
    from tsfresh import extract_features

    number = np.repeat(np.arange(len(series)), series.shape[1])
    long = pl.DataFrame({"id": number, "value": series.ravel()}).to_pandas()  # what tsfresh takes
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return extract_features(
            long.assign(kind=_KIND),
            column_id="id",
            column_kind="kind",
            column_value="value",
            default_fc_parameters=settings,
            n_jobs=0,
            disable_progressbar=True,
        )


def _in_order(table: Any) -> npt.NDArray[np.float64]:
    """The values in the order of the names, those that are not there NaN."""
    named = table.reindex(columns=[f"{_KIND}__{end}" for end in _ends()])
    return np.asarray(named.sort_index().to_numpy(dtype=np.float64))
