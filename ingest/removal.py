"""Files of a spool that are in the lake: removed, with a note of their names until the lake has forgotten them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

from ingest.collectors.removed import NOTES, Removed, parse_removed
from ingest.collectors.snapshots import parse_name
from ingest.collectors.spool import refused_by_disk, write_whole
from ingest.disk import sync_folder
from ingest.errors import SpoolError

MOST_DAYS: Final = 1000
"""So many removed days of Slurm's accounting are remembered; the oldest are forgotten first."""


class Removal:
    """Removes segments and old snapshots from a spool, and remembers which the lake has still to forget.

    Attributes
    ----------
    names
        Files that were removed, or are about to be, and that the lake still knows.

    Raises
    ------
    SpoolError
        If what an earlier follower noted cannot be read.
    """

    def __init__(self, spool: Path) -> None:
        self._spool, self._path = spool, spool / NOTES
        noted = self._read()
        self.names = set(noted.names)
        self._hours, self._days = dict(noted.hours), dict(noted.days)

    def _read(self) -> Removed:
        try:
            return parse_removed(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return Removed()
        except UnicodeDecodeError:  # the lake remembers a few names for ever then, that is all
            return Removed()
        except OSError as error:
            raise SpoolError(
                f"{self._path}: {error.strerror or error}; the follower must be able to read and write the spool: "
                "run it as the user that did before",
                reason="no_permission" if isinstance(error, PermissionError) else "disk_error",
            ) from error

    def remove(self, names: Iterable[str], *, keep_from: datetime | None = None) -> str:
        """Remove files that are in the lake; return why their names could not be noted, '' where they were.

        The note comes first, and all is durable in this order, so that a follower that is killed in between leaves
        nothing that the lake remembers for ever, nor a snapshot that its collector would write again. A full disk has
        no room for the note: there the removal makes it.

        Parameters
        ----------
        keep_from : before which these snapshots are old; None for segments

        Raises
        ------
        SpoolError
            If a file cannot be removed.
        """
        gone = sorted(names)
        if not gone:
            return ""
        self.names.update(gone)
        if keep_from is not None:
            self._mark(gone, keep_from)
        problem = self._note()
        try:
            for name in gone:
                (self._spool / name).unlink(missing_ok=True)
            for folder in {(self._spool / name).parent for name in gone}:
                sync_folder(folder)
        except OSError as error:
            raise refused_by_disk(self._spool, error) from error
        return self._note() if problem else ""

    def _mark(self, snapshots: Iterable[str], keep_from: datetime) -> None:
        """Remember of which hours and days collectors are to write no snapshot again."""
        for name in snapshots:
            hourly = parse_name(name)
            if hourly is None:
                self._days[name] = keep_from.timestamp()
            else:
                source, hour = hourly
                self._hours[source] = max(self._hours.get(source, 0), hour + 1)
        self._days = dict(sorted(self._days.items(), key=lambda day: (day[1], day[0]))[-MOST_DAYS:])

    def _note(self) -> str:
        """Write the names, durably; return what the disk refused."""
        try:
            write_whole(self._path, Removed(frozenset(self.names), self._hours, self._days).to_json())
        except OSError as error:
            return (
                f"{self._path}: {error.strerror or error}; what is in the lake was removed without that note: make "
                f"room on the spool's disk [{refused_by_disk(self._path, error).reason}]"
            )
        return ""
