"""The right to take a spool into a lake: one process at a time, until it ends, however it ends.

A follower removes what it took, so that a second one, or an ingest into another lake, would miss that without a word.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ingest.errors import SpoolBusyError, SpoolError
from ingest.sources.spool_files import SPOOL_FILE

FOLLOWER_LOCK: Final = "LOCK-follower"

_HOLDER_WITHIN_S: Final = 0.5
"""So long whoever has just got the lock may take to say so."""


@contextlib.contextmanager
def taking(spool: Path, lake: Path, *, removes: bool) -> Iterator[None]:
    """Hold the right to take the spool into the lake, and say in its lock file who does.

    Parameters
    ----------
    removes : segments will be removed, so that the spool has to be writable; one that is only read need not be

    Raises
    ------
    SpoolBusyError
        If another process has it.
    SpoolError
        If segments will be removed and the spool cannot be written.
    """
    path = spool / FOLLOWER_LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if removes:
            raise SpoolError(f"{path}: {error.strerror}; the follower must be able to write the spool") from error
        yield  # nobody who may not write here can remove anything
        return
    try:
        _lock(handle, spool)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        holder = f"process {os.getpid()} on {socket.gethostname()} into {lake} since {since}\n"
        with contextlib.suppress(OSError):  # a full disk: it can hold the lock all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder.encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


@contextlib.contextmanager
def taking_once(source: str, lake: Path, *, is_held: bool) -> Iterator[None]:
    """Hold a source while it is taken, if it is a spool that this process does not hold already."""
    if is_held or not (Path(source) / SPOOL_FILE).is_file():
        yield
        return
    with taking(Path(source), lake, removes=False):
        yield


def _lock(handle: int, spool: Path) -> None:
    until_s = time.monotonic() + _HOLDER_WITHIN_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 1000, 0).decode("utf-8", "replace").strip()
            if holder or time.monotonic() > until_s:
                raise SpoolBusyError(
                    f"{spool} is being taken into a lake by {holder or 'another process'}; one follower to a spool, "
                    "since what it removes is in its lake alone: stop that one, or wait for it to end"
                ) from error
            time.sleep(0.02)
        except OSError as error:
            raise SpoolError(
                f"{spool}: its file system cannot lock files ({error.strerror}); choose another, or mount it with flock"
            ) from error
        else:
            return
