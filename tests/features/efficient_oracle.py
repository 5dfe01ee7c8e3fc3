"""tsfresh itself, as the oracle of the feature set `efficient`: calculator by calculator, its errors as NaN."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

import features.efficient
from features.efficient import efficient, efficient_names


@contextmanager
def stable_sort():
    """numpy's default argsort is unstable and depends on the CPU; tsfresh's permutation entropy depends on it."""
    with mock.patch.object(np, "argsort", partial(np.argsort, kind="stable")):
        yield


def tsfresh_features(
    series: np.ndarray, only: Sequence[str] | None = None, time_s: np.ndarray | None = None
) -> dict[str, float]:
    """Every feature of tsfresh's efficient set, of one series of float64, by tsfresh's names without the channel.

    A calculator that raises gives NaN for all its columns, whose names come from a long series.
    """
    from tsfresh.feature_extraction.extraction import _do_extraction_on_chunk
    from tsfresh.feature_extraction.settings import EfficientFCParameters

    index = None if time_s is None else pd.to_datetime(np.asarray(time_s) * 1e9)
    data = pd.Series(np.asarray(series, dtype=np.float64), index=index)
    found: dict[str, float] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"), stable_sort():
        warnings.simplefilter("ignore")
        for name, parameters in EfficientFCParameters().items():
            if (only is not None and name not in only) or (name == "linear_trend_timewise" and time_s is None):
                continue
            try:
                rows = _do_extraction_on_chunk((0, "x", data), {name: parameters}, None, show_warnings=False)
            except Exception:  # noqa: BLE001  # whatever tsfresh raises, it has no value
                plain = pd.Series(np.sin(np.arange(64.0) ** 1.5), index=None if index is None else _times(64))
                rows = _do_extraction_on_chunk((0, "x", plain), {name: parameters}, None, show_warnings=False)
                rows = [(*row[:2], np.nan) for row in rows]
            found.update({row[1].removeprefix("x__"): float(row[2]) for row in rows})
    return found


def _times(count: int) -> pd.DatetimeIndex:
    return pd.to_datetime(np.arange(count) * 1e9)


def disagreements(series: np.ndarray, time_s: np.ndarray | None = None, only: Sequence[str] | None = None) -> list[str]:
    """Return each column of one series on which jobwatt and tsfresh differ by more than 1e-6, and than rounding."""
    return [
        f"{name}: {ours} here, {theirs} in tsfresh"
        for name, ours, theirs in differing_columns(series, time_s, only)
        if not abs(ours - theirs) <= rounding(name, series)
    ]


def differing_columns(
    series: np.ndarray, time_s: np.ndarray | None = None, only: Sequence[str] | None = None
) -> list[tuple[str, float, float]]:
    """Return each column of one series on which jobwatt and tsfresh differ by more than 1e-6, with both values."""
    timed = time_s is not None
    names = [name.removeprefix("x__") for name in efficient_names(["x"], timewise=timed)]
    ours = dict(zip(names, efficient(series[None, None], time_s[None] if timed else None)[0], strict=True))
    return [
        (name, ours[name], theirs)
        for name, theirs in tsfresh_features(series, only, time_s).items()
        if not agrees(ours[name], theirs)
    ]


def documented_columns() -> list[str]:
    """Return the columns of the list of differences, as patterns in which * stands for any value of a parameter."""
    listed = Path(features.efficient.__file__).with_name("differences.md").read_text("utf-8")
    rows = [line.split(" | ")[0] for line in listed.splitlines() if line.startswith("| `")]
    return [pattern for row in rows for pattern in re.findall("`([^`]+)`", row)]


def documented(column: str) -> bool:
    """Whether the list of differences has this column, given without its channel."""
    return any(fnmatchcase(column, pattern) for pattern in documented_columns())


def agrees(ours: float, theirs: float) -> bool:
    """Whether two cells are the same: both NaN, or equal, or within a relative 1e-6."""
    if np.isnan(ours) or np.isnan(theirs):
        return bool(np.isnan(ours) and np.isnan(theirs))
    return bool(ours == theirs or abs(ours - theirs) <= 1e-6 * max(abs(ours), abs(theirs)))


def rounding(name: str, series: np.ndarray) -> float:
    """How far two values of this column may be apart by rounding alone where the exact value is zero."""
    calculator, _, end = name.partition("__")
    level = float(np.nanmax(np.abs(series), initial=0.0))
    if not np.isfinite(level):
        return 0.0
    match calculator:
        case "cwt_coefficients":
            return 1e-13 * level
        case "spkt_welch_density":
            return min(1e-25 * level**2, 1e300)
        case "linear_trend" | "linear_trend_timewise" | "agg_linear_trend":
            if "value" in end:
                return 1e-14 if "rvalue" in end else 0.0
            hours = 3.6e5 if "timewise" in calculator else 1.0
            return (1e-7 if "stderr" in end else 1e-14) * min(level * max(level, 1.0), 1e300) * hours / len(series)
    return 0.0


def is_bounded(name: str, series: np.ndarray, ours: float, theirs: float) -> bool:
    """Whether a value may be one of those of an ill-posed column (`ILL_POSED`), as far as the list says how far.

    NaN on one side is a difference, but for the coefficient that tsfresh has as 0 or NaN on infinite values.
    """
    calculator, _, end = name.partition("__")
    if np.isnan(ours) or np.isnan(theirs):
        is_failure = end.startswith("coeff_10__") and calculator == "ar_coefficient" and not np.isfinite(series).all()
        return bool(np.isnan(ours) and (np.isnan(theirs) or (is_failure and theirs == 0)))
    match calculator:
        case "number_cwt_peaks":
            within = abs(ours - theirs) <= 2
        case "fft_aggregated":
            within = abs(ours - theirs) <= 0.02 * abs(theirs)
        case "fourier_entropy":
            within = 0 <= ours <= np.log(int(end.removeprefix("bins_")))
        case "ar_coefficient":
            within = abs(ours) <= 10 * (float(np.abs(series).max()) if end.startswith("coeff_0__") else 1)
        case "augmented_dickey_fuller":
            most_lags = np.ceil(12 * (len(series) / 100) ** 0.25)
            within = not ("pvalue" in end and not 0 <= ours <= 1) and not (
                "usedlag" in end and not 0 <= ours <= most_lags
            )
        case "friedrich_coefficients":
            within = abs(ours - theirs) <= 1e-9
        case _:
            within = np.isfinite(ours)
    return bool(within)
