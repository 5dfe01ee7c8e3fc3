"""Where the clock was set back, a GPU's rows carry times that it has told of already; what may then be told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

BREAK_S: Final = 10.0
"""A longer step between two samples is a gap, across which nothing is integrated; as in `ingest.quality`."""


class Telling(Enum):
    """What may be told of a reading: all, all but the energy counter, or nothing."""

    WHOLE = auto()
    WITHOUT_COUNTER = auto()
    NOT = auto()


@dataclass(slots=True)
class _Series:
    """The times told of before the clock was set back, and what came of it."""

    first_s: float
    until_s: float
    is_set_back: bool = False
    has_run_before: bool = False
    left_out: int = 0


class SeriesOrder:
    """Remembers from when to when the series (one job on one GPU) have been told of.

    Rows between others are samples as good as any, but an energy counter among them would seem to rise and fall: they
    are told without it. Rows that come within `BREAK_S` after the last are left out: without a gap there, the counter
    would be compared with an integral that lacks the seconds which the clock was set back by. Rows before all others
    are told whole; where these reach the others, the counter would count that time again, and is told no more.
    """

    def __init__(self) -> None:
        self._series: dict[tuple[int, int | None], _Series] = {}

    def place(self, index: int, job_id: int | None, time_s: float) -> Telling:
        """Return what may be told of a job's reading at a time."""
        told = self._series.get((index, job_id))
        if told is None:
            self._forget(index)
            told = self._series[index, job_id] = _Series(time_s, time_s)
        if time_s < told.until_s:
            told.is_set_back = True
        if told.is_set_back:
            if time_s < told.first_s:
                told.has_run_before = True
                return Telling.WHOLE
            if time_s <= told.until_s:
                return Telling.WITHOUT_COUNTER
            if time_s <= told.until_s + BREAK_S:
                told.left_out += 1
                return Telling.NOT
            told.is_set_back = False
        told.until_s = time_s
        return Telling.WITHOUT_COUNTER if told.has_run_before else Telling.WHOLE

    def take_left_out(self, index: int, job_id: int | None) -> int:
        """Return how many readings of a series were left out since it was asked last."""
        told = self._series[index, job_id]
        left_out, told.left_out = told.left_out, 0
        return left_out

    def _forget(self, index: int) -> None:
        """Forget the jobs that a GPU worked for before; the idle GPU comes back."""
        for series in [series for series in self._series if series[0] == index and series[1] is not None]:
            del self._series[series]
