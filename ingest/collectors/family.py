"""A process and all that descend from it, ended as one: what a shell or a launcher started goes with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ingest.collectors.process import read_process, tree
from ingest.errors import HardwareError

PROC: Final = Path("/proc")
LOOK_EVERY_S: Final = 0.1
KILLED_WITHIN_S: Final = 1.0
"""What has not ended so long after SIGKILL hangs in the kernel, and ends when that lets it."""

Family = dict[int, int]
"""Number of a process to when it was started, in ticks since the machine was: numbers are used again. Parents first."""


def end_family(root: int, within_s: float) -> None:
    """Ask a process and all that descend from it to end (SIGTERM), and kill (SIGKILL) what has not ``within_s`` later.

    Parents are asked before their children: a shell whose command ended first would begin its next one, or end as if
    nothing had happened. What another user's process does is left to that user.

    Parameters
    ----------
    root
        A child of this process that was not waited for, so that its number is still its own.
    """
    family = _with_descendants({root: _started(root)})
    _send(dict.fromkeys((root, *family)), signal.SIGTERM)
    family = _wait(family, within_s)
    _send(family, signal.SIGKILL)
    _send(_wait(family, KILLED_WITHIN_S), signal.SIGKILL)  # what was started while the others were killed


def _wait(family: Family, within_s: float) -> Family:
    """Wait until all have ended, and return those that have not, with what they started meanwhile."""
    deadline_s = time.monotonic() + within_s
    while (family := _with_descendants(family)) and time.monotonic() < deadline_s:
        time.sleep(LOOK_EVERY_S)
    return family


def _with_descendants(family: Family) -> Family:
    """Return those of a family that run, and all that descend from them; without them where /proc cannot be listed."""
    found: Family = {}
    for pid in [pid for pid, started in family.items() if started >= 0 and _started(pid) == started]:
        if pid not in found:
            with suppress(HardwareError):
                found.update({each: _started(each) for each in tree(pid, PROC)})
            found.setdefault(pid, family[pid])
    return {pid: started for pid, started in found.items() if started >= 0}


def _started(pid: int) -> int:
    """Return when a process was started, in ticks; -1 where it has ended, as a zombie has."""
    look = read_process(pid, PROC)
    return -1 if look is None or look.is_zombie else look.started_ticks


def _send(family: Iterable[int], number: signal.Signals) -> None:
    for pid in family:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
