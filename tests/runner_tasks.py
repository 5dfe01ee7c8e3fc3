"""Tasks for tests of runners: light to import, since every worker process imports them."""

from __future__ import annotations

import errno
import os
import signal
import time
from importlib import import_module
from pathlib import Path


def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


def describe_worker(_: int) -> tuple[int, str | None, bool]:
    """Return this process, how many threads polars may use in it, and whether Ctrl-C would reach it."""
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN or signal.SIGINT in signal.pthread_sigmask(0, [])
    time.sleep(0.1)  # so that one worker does not take all
    return os.getpid(), os.environ.get("POLARS_MAX_THREADS"), not deaf


def die_at_three(number: int) -> int:
    """Return the number; at 3 this process is killed."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fill_disk_at_zero(path: str) -> str:
    """Keep writing the time into a file; the one whose name ends in 0 finds no room."""
    if path.endswith("0"):
        time.sleep(0.3)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    for _ in range(1000):
        Path(path).write_text(str(time.monotonic_ns()))
        time.sleep(0.02)
    return path


def sleep(seconds: float) -> float:
    """Return after so many seconds."""
    time.sleep(seconds)
    return seconds


def sleep_a_minute(_: int) -> None:
    """Return after a minute."""
    time.sleep(60)


def import_absent(_: int) -> object:
    """Import a module that is not installed."""
    return import_module("no_such_module")
