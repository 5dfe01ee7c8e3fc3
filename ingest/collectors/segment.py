"""One segment of a spool while it is written: whole lines, synced, and given its final name at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

OPEN_SUFFIX: Final = ".open"


class Segment:
    """One open file of whole lines.

    Attributes
    ----------
    opened_s
        When it was opened, on the caller's clock.
    """

    def __init__(self, path: Path, header: str, opened_s: float) -> None:
        self.path = path
        self.opened_s = opened_s
        self.rows = 0
        self.bytes = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._write((header + "\n").encode())
        except OSError:
            os.close(self._file)
            path.unlink()
            raise
        sync_folder(path.parent)

    def append(self, lines: Sequence[str]) -> None:
        """Write lines and sync; where the disk is full, whole lines up to there stay."""
        self._write("".join(lines).encode())
        self.rows += len(lines)
        os.fsync(self._file)

    def _write(self, content: bytes) -> None:
        done = 0
        try:
            while done < len(content):
                done += os.write(self._file, content[done:])
        except OSError:
            whole = content.rfind(b"\n", 0, done) + 1
            os.ftruncate(self._file, self.bytes + whole)
            self.rows += content.count(b"\n", 0, whole)
            self.bytes += whole
            raise
        self.bytes += len(content)

    def close(self) -> None:
        """Give the segment its final name, or remove it where it has no rows."""
        os.close(self._file)
        if self.rows == 0:
            self.path.unlink()
            return
        self.path.rename(self.path.with_name(self.path.name.removesuffix(OPEN_SUFFIX)))
        sync_folder(self.path.parent)


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names a folder has."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
