"""The right to write a lake: one process at a time, until it ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from ingest.errors import LakeBusyError, LakeError

_LOCK_TRIES: Final = 50
_LOCK_PAUSE_S: Final = 0.01


@contextlib.contextmanager
def locked(path: Path, root: Path) -> Iterator[IO[str]]:
    """Hold the lock file at ``path``, and say in it who does.

    Raises
    ------
    LakeBusyError
        If another process writes the lake at ``root``.
    LakeError
        If ``root`` cannot be a lake.
    """
    absent: FileNotFoundError | None = None
    for _ in range(_LOCK_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("a+", encoding="utf-8")
        except (FileExistsError, NotADirectoryError) as error:
            raise LakeError(f"{root} is a file, or below one; give a folder for the lake") from error
        except FileNotFoundError as error:  # a first ingest that failed has just taken the folder away
            absent = error
            continue
        absent = None
        with lock:
            if _take(lock, root):
                if _is_at(lock, path):
                    yield lock
                    return
            else:
                lock.seek(0)
                if holder := lock.read().strip():
                    raise LakeBusyError(f"{root} is being written by {holder}; wait for it to end and try again")
        time.sleep(_LOCK_PAUSE_S)  # whoever holds it has not said yet who it is, or is just leaving
    if absent is not None:
        raise LakeError(f"{root}: no folder can be made there ({absent.strerror}); choose another") from absent
    raise LakeBusyError(f"{root} is being written by another process; wait for it to end and try again")


def _take(lock: IO[str], root: Path) -> bool:
    """Try to lock, and write down who did."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LakeError(
            f"{root}: its file system cannot lock files ({error.strerror}); choose another, or mount it with flock"
        ) from error
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
    lock.flush()
    return True


def _is_at(lock: IO[str], path: Path) -> bool:
    """Return whether an open file is still the one under that name."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False
