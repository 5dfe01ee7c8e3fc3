"""The time by which samples are old: the wall clock's, once it has shown that it is right.

A clock that is wrong at boot, or leaps, would drop every sample at once. So the last time that was believed is kept in
a file, and a wall clock that is far from it is believed only after it has said so for a day.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ingest.collectors.spool import write_whole
from ingest.units import S_PER_DAY

LEAP_S: Final = 60.0
"""While this process runs, a wall clock that moved this much against the monotonic one has leapt."""

AWAY_S: Final = S_PER_DAY
"""Since the last process, it may have moved by this much."""

DOUBTED_S: Final = S_PER_DAY
SAVE_EVERY_S: Final = 600.0


class BelievedTime:
    """Gives the time that retention goes by, in epoch seconds: never later than the wall clock, nor than is believed.

    Parameters
    ----------
    path : where it is kept from one process to the next
    newest : the newest sample that is not of the future, for a start without that file; None where there is none

    Attributes
    ----------
    doubt
        Why the wall clock is not believed now; empty where it is. It stays the same as long as that holds.
    """

    def __init__(
        self,
        path: Path,
        newest: Callable[[], float | None],
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.doubt = ""
        self._path, self._newest, self._wall, self._monotonic = path, newest, wall, monotonic
        self._believed_s, self._waited_s = _read(path)
        self._at_s = monotonic()
        self._has_agreed = False
        self._saved_s = float("-inf")

    def now_s(self) -> float:
        """Return it, and look at the wall clock."""
        at_s, wall_s = self._monotonic(), self._wall()
        passed_s, self._at_s = at_s - self._at_s, at_s
        if self._believed_s is None:
            newest_s = self._newest()
            self._believed_s = wall_s if newest_s is None else newest_s
        believed_s = self._believed_s + passed_s
        self._waited_s += passed_s if self.doubt else 0.0
        leap_s = wall_s - believed_s
        if abs(leap_s) <= (LEAP_S if self._has_agreed else AWAY_S) or self._waited_s >= DOUBTED_S:
            believed_s, self._waited_s, self.doubt, self._has_agreed = wall_s, 0.0, "", True
        elif not self.doubt:
            self.doubt = _doubt(leap_s)
        self._believed_s = believed_s
        self._save(at_s)
        return min(wall_s, believed_s)

    def _save(self, at_s: float) -> None:
        if at_s - self._saved_s >= SAVE_EVERY_S:
            kept = {"believed_s": self._believed_s, "waited_s": self._waited_s}
            with contextlib.suppress(OSError):  # a full disk: it is tried again, and only the next process misses it
                write_whole(self._path, json.dumps(kept) + "\n")
                self._saved_s = at_s


def _doubt(leap_s: float) -> str:
    where = "ahead of" if leap_s > 0 else "behind"
    long = f"{abs(leap_s) / S_PER_DAY:.1f} days" if abs(leap_s) >= S_PER_DAY else f"{abs(leap_s):.0f} s"
    return (
        f"the clock is {long} {where} what it should be since it was last known: no samples are dropped by it until it "
        "has said so for 24 h; look after the time of this machine [clock_step]"
    )


def _read(path: Path) -> tuple[float | None, float]:
    """Return the time that was believed, and for how long (s) another one had been told; (None, 0) if unknown."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return float(found["believed_s"]), float(found["waited_s"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, 0.0
