"""When to read: an absolute schedule on the monotonic clock, and a watch on the wall clock's leaps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ingest.collectors.clock import SLEWED_S, steady_time
from ingest.collectors.spool import Spool, row

LATE_S: Final = 0.010
"""A tick that begins more than this after its due time is reported as late."""

CLOCK_STEP_S: Final = 0.1
"""The wall clock has leapt where it moved this much against the monotonic clock between two looks.

Slewing (at most 500 ppm) moves it by half a millisecond a second.
"""


SAY_AGAIN_S: Final = 60.0
"""The same line is said at most so often."""

SAID_EVENTS: Final[Mapping[str, str]] = {"clock_step": "the wall clock was set"}
"""Events that are always said, each under its own name as the reason: what the line begins with."""


class Events:
    """What happened to the collectors themselves: rows of the spool's ``events``, counts of them, and lines.

    Parameters
    ----------
    say
        Takes what somebody should see at once, in one line that ends with its reason in brackets; nobody unless given.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        wall: Callable[[], float] = steady_time,
        monotonic: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self._spool, self._wall, self._monotonic, self._say = spool, wall, monotonic, say
        self._said_s: dict[str, float] = {}
        self._telling = threading.Lock()

    def record(
        self,
        collector: str,
        event: str,
        *,
        count: int = 1,
        seconds: float | None = None,
        detail: str = "",
        reason: str = "",
    ) -> None:
        """Write one event now; ``seconds`` means what the event says (how late, how long a gap, …).

        One with a ``reason`` is also said, and its detail begins with that.
        """
        key = (collector, event)
        self.counts[key] = self.counts.get(key, 0) + count
        told = None if seconds is None else f"{seconds:.6f}"
        coded = f"{reason}: {detail}" if reason else detail
        values = (f"{self._wall():.6f}", self._spool.node, collector, event, count, told, coded)
        self._spool.append("events", row(values))
        if event in SAID_EVENTS:
            moved = "" if seconds is None else f" by {seconds:+.3f} s"
            self._tell(f"{SAID_EVENTS[event]}{moved} [{event}]")
        elif reason:
            self._tell(f"{detail} [{reason}]")

    def _tell(self, line: str) -> None:
        """Say a line, unless it was said within the last `SAY_AGAIN_S`."""
        if self._say is None:
            return
        now_s = self._monotonic()
        with self._telling:
            self._said_s = {said: at_s for said, at_s in self._said_s.items() if now_s - at_s < SAY_AGAIN_S}
            if line in self._said_s:
                return
            self._said_s[line] = now_s
        self._say(line)


def ticks(
    interval_s: float,
    collector: str,
    events: Events,
    *,
    wait: Callable[[float], bool],
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[float]:
    """Yield the due time of each tick, when it is due: start, start + interval, start + 2 intervals, … without drift.

    A tick that comes late is reported; ticks whose time has passed altogether are skipped and reported as missed.

    Parameters
    ----------
    wait
        Waits so many seconds and returns whether it is time to end, as `threading.Event.wait` does.
    """
    if interval_s <= 0:
        raise ValueError(f"interval_s is {interval_s}; give more than 0")
    start_s = last_s = monotonic()
    number = 0
    while not wait(max(0.0, start_s + number * interval_s - monotonic())):
        now_s = monotonic()
        behind = int((now_s - start_s - number * interval_s) // interval_s)
        if behind > 0:
            number += behind
            events.record(collector, "missed", count=behind, seconds=now_s - last_s)
        due_s = start_s + number * interval_s
        if now_s - due_s > LATE_S:
            events.record(collector, "late", seconds=now_s - due_s)
        last_s = now_s
        yield due_s
        number += 1


class ClockWatch:
    """Notices when somebody sets the wall clock: its distance from the monotonic clock leaps."""

    def __init__(
        self,
        events: Events,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events, self._wall, self._monotonic = events, wall, monotonic
        self._offset_s = self._offset()

    def look(self) -> None:
        """Record a ``clock_step`` where the wall clock leapt since the last look; seconds: how far forward."""
        offset_s = self._offset()
        step_s = offset_s - self._offset_s
        if abs(step_s) > CLOCK_STEP_S:
            follows = "at once" if abs(step_s) > SLEWED_S else "by 1 %"
            detail = f"rows follow {follows}; wall clock minus monotonic clock is now {offset_s:.6f} s"
            self._events.record("clock", "clock_step", seconds=step_s, detail=detail)
        self._offset_s = offset_s

    def _offset(self) -> float:
        """Return wall clock minus monotonic clock in s, read while nothing came between the two readings."""
        offset_s = 0.0
        for _ in range(5):
            before_s = self._monotonic()
            wall_s = self._wall()
            after_s = self._monotonic()
            offset_s = wall_s - (before_s + after_s) / 2
            if after_s - before_s < 0.001:
                break
        return offset_s
