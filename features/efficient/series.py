"""A batch of series, and what several calculators need of it, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Values: TypeAlias = npt.NDArray[np.float64]


class SeriesBatch:
    """Series of one length, one a row, all of at least one sample.

    Parameters
    ----------
    values : contiguous array of shape (n_series, n_samples)
    time_h : hours since each series' first sample, of the same shape; None where nobody knows them
    """

    def __init__(self, values: Values, time_h: Values | None = None) -> None:
        self.values = values
        self.time_h = time_h
        self.n_series, self.n_samples = values.shape
        self._results: dict[Callable[[SeriesBatch], Values], Values] = {}

    def once(self, compute: Callable[[SeriesBatch], Values]) -> Values:
        """Return ``compute(self)``, computed for the first calculator that asks."""
        if compute not in self._results:
            self._results[compute] = compute(self)
        return self._results[compute]

    @cached_property
    def rising(self) -> Values:
        """Each series sorted, NaN last."""
        return np.sort(self.values, axis=1)

    @cached_property
    def absent(self) -> npt.NDArray[np.bool_]:
        """Whether a series has a NaN."""
        return np.isnan(self.rising[:, -1])

    @cached_property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Whether all values of a series are finite."""
        return np.isfinite(self.rising[:, 0]) & np.isfinite(self.rising[:, -1])

    @cached_property
    def minimum(self) -> Values:
        return np.where(self.absent, np.nan, self.rising[:, 0])

    @cached_property
    def maximum(self) -> Values:
        return np.where(self.absent, np.nan, self.rising[:, -1])

    @cached_property
    def mean(self) -> Values:
        return np.asarray(self.values.mean(axis=1))

    @cached_property
    def offset(self) -> Values:
        """Each value less its series' mean."""
        return self.values - self.mean[:, None]

    @cached_property
    def variance(self) -> Values:
        return np.asarray((self.offset * self.offset).sum(axis=1) / self.n_samples)

    @cached_property
    def deviation(self) -> Values:
        """The standard deviation, of the whole population."""
        return np.sqrt(self.variance)

    @cached_property
    def median(self) -> Values:
        above = self.n_samples // 2
        if self.n_samples % 2:
            middle = self.rising[:, above]
        else:
            middle = (self.rising[:, above - 1] + self.rising[:, above]) / 2
        return np.where(self.absent, np.nan, middle)

    @cached_property
    def step(self) -> Values:
        """Each value less the one before, shape (n_series, n_samples - 1)."""
        return np.diff(self.values, axis=1)


@dataclass(frozen=True, slots=True)
class Calculator:
    """One of tsfresh's calculators: the names of its columns and the function that fills them.

    ``parameters`` are the ends of the column names (``q_0.1``), or one empty string for a calculator without any.
    ``compute`` returns an array of shape (n_series, len(parameters)), or (n_series,) where there is one.
    """

    parameters: tuple[str, ...]
    compute: Callable[[SeriesBatch], npt.NDArray[np.generic]]
    needs_time: bool = False


def plain(compute: Callable[[SeriesBatch], npt.NDArray[np.generic]]) -> Calculator:
    """Return the calculator of a feature without parameters."""
    return Calculator(("",), compute)
