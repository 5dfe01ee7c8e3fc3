"""The feature sets by name: what their columns are called, and the function that fills them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.covariance import covariance, covariance_names
from features.job import CONTEXT_NAMES, job, job_names
from features.low_overhead import low_overhead, low_overhead_names
from features.spectral import spectral, spectral_names
from features.statistical import statistic_names, statistics
from features.windows import FloatArray


@dataclass(frozen=True, slots=True)
class WindowShape:
    """What the windows of one table have in common: their channels, their samples, and the samples of a second.

    ``samples_per_s`` is one number, or where each window was read at a rate of its own an array of (n_windows,).
    """

    channels: tuple[str, ...]
    n_samples: int
    samples_per_s: float | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """A set of features.

    ``names(shape)`` are the columns; ``features(values, shape)`` fills them, from windows of shape (n_windows,
    n_channels, n_samples) to (n_windows, n_columns). ``version`` goes up whenever a column or a value changes, so that
    tables of two versions are never mixed. A ``whole`` set counts a missing reading like any other, so a channel must
    have all of them; shorter windows than ``least_samples`` it cannot take. ``context`` names the columns that it has
    of what is around the window, which are no features of its values (`features.job.context`); a
    ``compiled`` set has kernels that the first window waits for (`features.warming`). A ``wide`` one has so many
    columns that a part of few windows costs more than the windows do.
    """

    name: str
    version: int
    names: Callable[[WindowShape], list[str]]
    features: Callable[[FloatArray, WindowShape], npt.NDArray[np.floating]]
    whole: bool = False
    least_samples: int = 1
    context: tuple[str, ...] = ()
    compiled: bool = False
    wide: bool = False


def _interval_names(shape: WindowShape) -> list[str]:
    from features.intervals import interval_names

    return interval_names(shape.channels, shape.n_samples)


def _intervals(values: FloatArray, shape: WindowShape) -> npt.NDArray[np.floating]:
    from features.intervals import intervals

    return intervals(values)


def _efficient_names(shape: WindowShape) -> list[str]:
    from features.efficient import efficient_names

    return efficient_names(shape.channels)


def _efficient(values: FloatArray, shape: WindowShape) -> npt.NDArray[np.floating]:
    from features.efficient import efficient

    return efficient(values)


def _tsfresh_names(shape: WindowShape) -> list[str]:
    from features.tsfresh_bridge import tsfresh_names

    return tsfresh_names(shape.channels)


def _tsfresh(values: FloatArray, shape: WindowShape) -> npt.NDArray[np.floating]:
    from features.tsfresh_bridge import tsfresh

    return tsfresh(values, shape.channels)


def _job(values: FloatArray, shape: WindowShape) -> npt.NDArray[np.floating]:
    return job(values, shape.channels, shape.samples_per_s)


FEATURE_SETS: dict[str, FeatureSet] = {
    made.name: made
    for made in (
        FeatureSet("covariance", 2, lambda s: covariance_names(s.channels), lambda values, _: covariance(values)),
        FeatureSet("statistical", 2, lambda s: statistic_names(s.channels), lambda values, _: statistics(values)),
        FeatureSet("spectral", 2, lambda s: spectral_names(s.channels), lambda x, s: spectral(x, s.samples_per_s)),
        FeatureSet("intervals", 2, _interval_names, _intervals, least_samples=4, compiled=True, wide=True),
        FeatureSet("low_overhead", 1, lambda s: low_overhead_names(s.channels), lambda x, _: low_overhead(x)),
        FeatureSet("job", 1, lambda s: job_names(s.channels), _job, context=CONTEXT_NAMES),
        FeatureSet("efficient", 1, _efficient_names, _efficient, whole=True, compiled=True, wide=True),
        FeatureSet("tsfresh", 1, _tsfresh_names, _tsfresh, whole=True),
    )
}
"""A new set is a line here. Compiled kernels, and tsfresh, are imported when their set is first used."""


def find_set(name: str) -> FeatureSet:
    """Return the feature set of this name.

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.
    """
    if name not in FEATURE_SETS:
        raise ValueError(f"no feature set is called {name!r}; choose among {', '.join(FEATURE_SETS)}")
    return FEATURE_SETS[name]


def shape_of(
    values: FloatArray, channels: Sequence[str], samples_per_s: float | npt.NDArray[np.float64]
) -> WindowShape:
    """Return the shape that names the columns of these windows; the channels must be as many as theirs.

    Frequencies and periods are right where ``samples_per_s`` is that of the samples, ``Windows.samples_per_s``: a
    window at 9 samples a second cut from readings at 10 holds readings at 10.
    """
    if values.ndim != 3 or values.shape[1] != len(channels):
        raise ValueError(f"values have shape {values.shape}; give (n_windows, {len(channels)} channels, n_samples)")
    return WindowShape(tuple(channels), values.shape[2], samples_per_s)
