"""The right to take a spool into a lake: one process at a time, until it ends, however it ends.

A follower removes what it took, so that a second one, or an ingest into another lake, would miss that without a word.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
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

_HOLDER: Final = re.compile(r"process (\d+) on (\S+) into ")


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
        If segments will be removed and the spool cannot be written, or its lock file cannot be opened.

    Notes
    -----
    Who may not write the spool shares the lock with others of the kind: none of them removes anything, and none goes on
    beside a follower, whom only the lock file's absence shows to be none.
    """
    handle, is_written = _open(spool / FOLLOWER_LOCK, removes=removes)
    if handle is None:
        yield
        return
    try:
        _lock(handle, spool, fcntl.LOCK_EX if is_written else fcntl.LOCK_SH)
        if is_written:
            _name_holder(handle, lake)
        try:
            yield
        finally:
            if is_written:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _open(path: Path, *, removes: bool) -> tuple[int | None, bool]:
    """Return the lock file's handle, and whether it can be written; None where it does not exist and cannot be made."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), True
    except OSError as error:
        if removes:
            raise SpoolError(f"{path}: {error.strerror}; the follower must be able to write the spool") from error
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    except FileNotFoundError:  # no follower has ever been here
        return None, False
    except OSError as error:
        raise _not_opened(path, error) from error


def _not_opened(path: Path, error: OSError) -> SpoolError:
    return SpoolError(
        f"{path}: {error.strerror}; it must be readable, since it tells whether a follower removes what is read here"
    )


def _name_holder(handle: int, lake: Path) -> None:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    holder = f"process {os.getpid()} on {socket.gethostname()} into {lake} since {since}\n"
    with contextlib.suppress(OSError):  # a full disk: it can hold the lock all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.encode(), 0)


@contextlib.contextmanager
def taking_once(source: str, lake: Path, *, is_held: bool) -> Iterator[None]:
    """Hold a source while it is taken, if it is a spool that this process does not hold already."""
    if is_held or not (Path(source) / SPOOL_FILE).is_file():
        yield
        return
    with taking(Path(source), lake, removes=False):
        yield


def _lock(handle: int, spool: Path, operation: int) -> None:
    until_s = time.monotonic() + _HOLDER_WITHIN_S
    while True:
        try:
            fcntl.flock(handle, operation | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(handle)
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


def _holder(handle: int) -> str:
    """Return who holds the lock by what the lock file says; '' where that is nobody, or one who has died since."""
    line = os.pread(handle, 1000, 0).decode("utf-8", "replace").strip()
    found = _HOLDER.match(line)
    if found is None or found[2] != socket.gethostname():
        return line
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return ""
    except (PermissionError, OverflowError):  # somebody else's; no number of a process
        return line
    return line
