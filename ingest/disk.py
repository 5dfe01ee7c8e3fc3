"""What writing to a disk needs everywhere: a file that is there whole or not at all, and a folder made durable."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a name of its own and rename it: nobody sees half of it, and a failure leaves the old one."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries, and so the renames in it, durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Syncing:
    """Makes files durable in a thread of its own, while the next ones are written."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._due: list[Future[None]] = []

    def add(self, file: IO[bytes]) -> None:
        """Take a file that is written, to sync and close it."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "sync")
        self._due.append(self._thread.submit(_sync, file))

    def finish(self) -> None:
        """Wait until every file is durable.

        Raises
        ------
        OSError
            If one cannot be made so.
        """
        due, self._due = self._due, []
        try:
            for future in due:
                future.result()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None


def _sync(file: IO[bytes]) -> None:
    with file:
        os.fsync(file.fileno())
