"""The time that rows carry: the wall clock's, but never one that was told before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

CATCH_UP: Final = 0.1
"""While the wall clock is behind what was told, this clock runs slower by so much: 30 s are made up for in 300 s."""


class SteadyClock:
    """Gives epoch seconds. A wall clock that is set forward is followed at once, one that is set back little by little.

    Were it followed at once, rows of two real moments would lie between each other, and a counter that rises would
    seem to fall and rise with every row. What the wall clock did is an event of its own (``clock_step``).
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
            behind_s = self._offset_s - (self._wall() - now_s)
            self._offset_s -= min(behind_s, CATCH_UP * (now_s - self._at_s))
            self._at_s = now_s
            return now_s + self._offset_s


steady_time: Final = SteadyClock()
"""The one of this process: what several collectors tell is in one order."""
