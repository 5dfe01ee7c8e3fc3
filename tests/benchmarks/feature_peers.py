"""What jobwatt's feature sets are measured against: the same features of the same windows, by other libraries.

tsflex, TSFEL and aeon are the extra ``bench``, apart from the lock: aeon holds numba and numpy back. A peer is two
functions, ours and theirs, each from windows of (n_windows, n_channels, n_samples) to the same (n_windows, columns).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd
import polars as pl

from features.covariance import covariance
from features.efficient import efficient, efficient_names
from features.intervals import intervals
from features.statistical import QUANTILES, STATISTICS, statistics
from features.windows import CHALLENGE_CHANNELS

N_CHANNELS = len(CHALLENGE_CHANNELS)
Extractor = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Peer:
    """A library, what of it is compared, and the two ways to that.

    ``scale`` gives the size that a difference is measured against, where that is not the value itself. ``windows`` is
    how many a round takes, so that a slow peer needs seconds. ``bar`` is the least ratio.
    """

    name: str
    package: str
    what: str
    ours: Extractor
    theirs: Extractor
    bar: float
    windows: int
    scale: Extractor | None = None


def installed(package: str) -> str | None:
    """Return the version of a package; none where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# -- numpy and polars --------------------------------------------------------------------------------------------------


def covariance_by_numpy(windows: np.ndarray) -> np.ndarray:
    """``np.cov``, window by window."""
    upper = np.triu_indices(windows.shape[1])
    return np.array([np.cov(window)[upper] for window in windows])


def long_frame(windows: np.ndarray) -> pl.DataFrame:
    """Return the windows as polars takes them: a column for each channel, a row for each sample."""
    columns = {name: windows[:, channel].ravel() for channel, name in enumerate(CHALLENGE_CHANNELS)}
    return pl.DataFrame({"window": np.repeat(np.arange(len(windows)), windows.shape[2]), **columns})


def statistics_by_polars(windows: np.ndarray) -> np.ndarray:
    """The statistics of every channel in one ``group_by``; the long table is made before the clock starts."""
    expressions = []
    for name in CHALLENGE_CHANNELS:
        x = pl.col(name)
        of_channel = {
            "mean": x.mean(),
            "standard_deviation": x.std(ddof=0),
            "root_mean_square": x.pow(2).mean().sqrt(),
            "count_above_mean": (x > x.mean()).sum(),
            "minimum": x.min(),
            "maximum": x.max(),
            **{f"quantile__q_{q}": x.quantile(q, "linear") for q in QUANTILES},
            "mean_abs_change": x.diff().abs().mean(),
            "cid_ce__normalize_False": x.diff().pow(2).sum().sqrt(),
        }
        expressions += [made.alias(f"{name}__{end}") for end, made in of_channel.items()]
    found = _frame_of(windows).lazy().group_by("window").agg(expressions).collect()
    return found.sort("window").drop("window").to_numpy()


_FRAMES: dict[int, pl.DataFrame] = {}


def _frame_of(windows: np.ndarray) -> pl.DataFrame:
    if id(windows) not in _FRAMES:
        _FRAMES.clear()
        _FRAMES[id(windows)] = long_frame(windows)
    return _FRAMES[id(windows)]


# -- aeon --------------------------------------------------------------------------------------------------------------


def quant_by_aeon(windows: np.ndarray) -> np.ndarray:
    """aeon's QUANT: depth 6, a quantile for every four samples, values, smoothed change, second change, spectrum."""
    import torch
    from aeon.transformations.collection.interval_based import QUANTTransformer

    torch.set_num_threads(1)
    return QUANTTransformer(interval_depth=6, quantile_divisor=4).fit_transform(windows)


def quant_scale(windows: np.ndarray) -> np.ndarray:
    """The largest reading of each column's channel: aeon reckons in single precision, whose rounding goes with that."""
    largest = np.abs(windows).max(axis=2)
    width = intervals(windows[:1]).shape[1] // windows.shape[1]
    return np.repeat(np.maximum(largest, 1e-30), width, axis=1) * 100


CATCH22 = {
    "Mean": "mean",
    "StandardDeviation": "standard_deviation",
    "SB_BinaryStats_mean_longstretch1": "longest_strike_above_mean",
}
"""Those of catch24 that tsfresh defines too. The others have no twin among its features."""


def catch22_by_aeon(windows: np.ndarray) -> np.ndarray:
    """The shared ones of aeon's catch22 (its compiled one); its longest stretch counts the sample that ends it."""
    from aeon.transformations.collection.feature_based import Catch22

    found = np.asarray(Catch22(features=list(CATCH22), catch24=True).fit_transform(windows.astype(np.float64)))
    found[:, list(CATCH22).index("SB_BinaryStats_mean_longstretch1") :: len(CATCH22)] -= 1  # it counts the end as well
    return found


# -- TSFEL -------------------------------------------------------------------------------------------------------------

TSFEL = {
    "Absolute energy": "abs_energy",
    "Max": "maximum",
    "Mean": "mean",
    "Mean absolute diff": "mean_abs_change",
    "Mean diff": "mean_change",
    "Median": "median",
    "Min": "minimum",
    "Neighbourhood peaks": "number_peaks__n_10",
    "Root mean square": "root_mean_square",
    "Slope": 'linear_trend__attr_"slope"',
    "Standard deviation": "standard_deviation",
    "Sum absolute diff": "absolute_sum_of_changes",
    "Variance": "variance",
}
"""TSFEL's features that tsfresh defines alike."""


def by_tsfel(windows: np.ndarray) -> np.ndarray:
    """TSFEL's own extraction, with a configuration of the shared features alone."""
    import tsfel

    every = tsfel.get_features_by_domain()
    chosen = {
        domain: {name: settings for name, settings in of_domain.items() if name in TSFEL}
        for domain, of_domain in every.items()
    }
    frame = pd.DataFrame(windows.transpose(0, 2, 1).reshape(-1, N_CHANNELS), columns=CHALLENGE_CHANNELS, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tsfel.time_series_features_extractor(
            {domain: some for domain, some in chosen.items() if some},
            frame,
            fs=9.0,
            window_size=windows.shape[2],
            verbose=0,
            n_jobs=None,
        )
    return found[[f"{channel}_{name}" for channel in CHALLENGE_CHANNELS for name in TSFEL]].to_numpy()


# -- tsflex ------------------------------------------------------------------------------------------------------------


def _rms(x: np.ndarray) -> float:
    return np.sqrt(np.mean(np.square(x)))


def _above_mean(x: np.ndarray) -> int:
    return np.count_nonzero(x > np.mean(x))


def _quantiles(x: np.ndarray) -> tuple[float, ...]:
    return tuple(np.quantile(x, QUANTILES))


def _mean_abs_change(x: np.ndarray) -> float:
    return np.mean(np.abs(np.diff(x)))


def _cid(x: np.ndarray) -> float:
    return np.sqrt(np.sum(np.square(np.diff(x))))


def statistics_by_tsflex(windows: np.ndarray) -> np.ndarray:
    """numpy's functions, window by window, in tsflex's collection."""
    from tsflex.features import FuncWrapper

    named = {"mean": np.mean, "std": np.std, "rms": _rms, "above": _above_mean, "min": np.min, "max": np.max}
    functions = [FuncWrapper(one, output_names=name) for name, one in named.items()]
    functions.append(FuncWrapper(_quantiles, output_names=[f"q{q}" for q in QUANTILES]))
    functions += [FuncWrapper(_mean_abs_change, output_names="mac"), FuncWrapper(_cid, output_names="cid")]
    order = [*named, *(f"q{q}" for q in QUANTILES), "mac", "cid"]
    found = _tsflex(windows, functions)
    return found[[f"{channel}__{name}__w=540" for channel in CHALLENGE_CHANNELS for name in order]].to_numpy()


def _tsflex(windows: np.ndarray, functions: list[object]) -> pd.DataFrame:
    from tsflex.features import FeatureCollection, MultipleFeatureDescriptors

    n_samples = windows.shape[2]
    described = MultipleFeatureDescriptors(functions, list(CHALLENGE_CHANNELS), windows=n_samples, strides=n_samples)
    flat = windows.transpose(1, 0, 2).reshape(N_CHANNELS, -1).astype(np.float64)
    data = [pd.Series(row, name=name) for row, name in zip(flat, CHALLENGE_CHANNELS, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FeatureCollection(described).calculate(
            data, return_df=True, n_jobs=1, include_final_window=True, window_idx="begin"
        )


def efficient_by_tsflex(windows: np.ndarray) -> np.ndarray:
    """tsfresh's efficient set in tsflex's collection; the columns that need times are not in it."""
    from tsflex.features.integrations import tsfresh_settings_wrapper
    from tsfresh.feature_extraction.settings import EfficientFCParameters

    settings = EfficientFCParameters()
    del settings["linear_trend_timewise"]
    return _tsflex(windows, tsfresh_settings_wrapper(settings)).to_numpy()


# -- the table of them -------------------------------------------------------------------------------------------------


def _of_efficient(columns: list[str]) -> Extractor:
    """These columns of ``efficient``, with no more calculators than they need."""
    calculators = sorted({column.partition("__")[0] for column in columns})
    names = efficient_names(CHALLENGE_CHANNELS, calculators=calculators)
    wanted = [names.index(f"{channel}__{column}") for channel in CHALLENGE_CHANNELS for column in columns]
    return lambda windows: efficient(windows, calculators=calculators)[:, wanted]


def peers() -> list[Peer]:
    """Return what is compared, the ones with a bar of their own first."""
    n_statistics = len(STATISTICS)
    return [
        Peer("`np.cov`, window by window", "numpy", "`covariance` (28)", covariance, covariance_by_numpy, 1.2, 256),
        Peer(
            "polars `group_by`",
            "polars",
            f"`statistical` ({n_statistics} a channel)",
            statistics,
            statistics_by_polars,
            2.5,
            256,
        ),
        Peer("aeon `QUANTTransformer`", "aeon", "`intervals`", intervals, quant_by_aeon, 3.0, 64, quant_scale),
        Peer(
            "aeon `Catch22`",
            "aeon",
            f"{len(CATCH22)} of `efficient`",
            _of_efficient(list(CATCH22.values())),
            catch22_by_aeon,
            1.0,
            256,
        ),
        Peer("TSFEL", "tsfel", f"{len(TSFEL)} of `efficient`", _of_efficient(list(TSFEL.values())), by_tsfel, 1.0, 64),
        Peer(
            "tsflex, numpy's functions",
            "tsflex",
            f"`statistical` ({n_statistics} a channel)",
            statistics,
            statistics_by_tsflex,
            1.0,
            64,
        ),
    ]
