"""Segments of a spool that are in the lake: removed, with a note of their names until the lake has forgotten them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ingest.collectors.spool import refused_by_disk, write_whole
from ingest.disk import sync_folder
from ingest.errors import SpoolError

NOTES: Final = ".follower.json"
"""In the spool: the names of segments that are, or are about to be, removed, and that the lake has not forgotten."""


class Removal:
    """Removes segments from a spool, and remembers which the lake has still to forget.

    Attributes
    ----------
    names
        Segments that were removed, or are about to be, and that the lake still knows.

    Raises
    ------
    SpoolError
        If what an earlier follower noted cannot be read.
    """

    def __init__(self, spool: Path) -> None:
        self._spool, self._path = spool, spool / NOTES
        self.names = self._read()

    def _read(self) -> set[str]:
        try:
            return {str(name) for name in json.loads(self._path.read_text("utf-8"))["removed"]}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise SpoolError(
                f"{self._path}: {error.strerror or error}; the follower must be able to read and write the spool: "
                "run it as the user that did before",
                reason="no_permission" if isinstance(error, PermissionError) else "disk_error",
            ) from error
        except (ValueError, KeyError, TypeError):  # the lake remembers a few names for ever then, that is all
            return set()

    def remove(self, names: Iterable[str]) -> str:
        """Remove segments that are in the lake; return why their names could not be noted, '' where they were.

        The note comes first, and all is durable in this order, so that a follower that is killed in between leaves
        nothing that the lake remembers for ever. A full disk has no room for the note: there the removal makes it.

        Raises
        ------
        SpoolError
            If a segment cannot be removed.
        """
        gone = sorted(names)
        if not gone:
            return ""
        self.names.update(gone)
        problem = self._note()
        try:
            for name in gone:
                (self._spool / name).unlink(missing_ok=True)
            for folder in {(self._spool / name).parent for name in gone}:
                sync_folder(folder)
        except OSError as error:
            raise refused_by_disk(self._spool, error) from error
        return self._note() if problem else ""

    def _note(self) -> str:
        """Write the names, durably; return what the disk refused."""
        try:
            write_whole(self._path, json.dumps({"removed": sorted(self.names)}) + "\n")
        except OSError as error:
            return (
                f"{self._path}: {error.strerror or error}; what is in the lake was removed without that note: make "
                f"room on the spool's disk [{refused_by_disk(self._path, error).reason}]"
            )
        return ""
