"""The time that rows carry: the wall clock's, and the order of a series' rows where that clock was set back."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final

SLEWED_S: Final = 10.0
"""A step of the wall clock of up to this is followed slowly, a longer one at once.

It is the longest step between two samples that the lake counts as covered (`ingest.quality.MAX_GAP_S`): followed at
once, a leap forward of 9 s would be 9 s of energy that nobody drew.
"""

SLEW: Final = 0.01
"""By so much this clock runs faster or slower until it has followed: durations and energies are off by 1 % at most."""


class SteadyClock:
    """Gives epoch seconds: the wall clock's, but steps of up to `SLEWED_S` are followed by 1 s in 100 s.

    So a time comes twice, and rows of two real moments lie between each other, only where the wall clock is set back by
    more. What the wall clock did is an event of its own (``clock_step``).
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._turn = threading.Lock()
        self._at_s = monotonic()
        self._offset_s = wall() - self._at_s

    def __call__(self) -> float:
        """Return the time now, in s since 1970."""
        with self._turn:
            now_s = self._monotonic()
            behind_s = self._wall() - now_s - self._offset_s
            most_s = SLEW * (now_s - self._at_s)
            if most_s < abs(behind_s) <= SLEWED_S:
                behind_s = math.copysign(most_s, behind_s)
            self._offset_s += behind_s
            self._at_s = now_s
            return now_s + self._offset_s


steady_time: Final = SteadyClock()
"""The one of this process: what several collectors tell is in one order."""
