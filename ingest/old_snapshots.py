"""Snapshots of a spool that are older than what is kept: which of them may go, once the lake has taken them.

An hourly one may when its hour is that old and the lake has let go of its GPU samples; a daily one of Slurm's
accounting when all of its jobs ended that long ago. The newest one of each source stays, since collectors and follower
go on from it. A file that was read with another one's rows goes with that one or not at all, since a change of either
would ask for both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ingest.collectors.slurm import SUFFIX, last_end_s, parse_name, read_snapshot
from ingest.collectors.snapshots import HOUR_S, changing
from ingest.collectors.snapshots import parse_name as parse_hour
from ingest.errors import SourceError
from ingest.forgetting import find_forgettable
from ingest.manifest import NO_PART
from ingest.reconcile import SEPARATOR
from ingest.removal import Removal
from ingest.sources.sacct_files import FORMAT


class State(NamedTuple):
    """What is another one after a snapshot was written again."""

    inode: int
    size: int
    changed_ns: int


class OldSnapshots:
    """Finds them, and remembers which accounts of a day have been read in vain."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._stay: dict[str, tuple[State, datetime]] = {}

    def find(self, keep_from: datetime) -> dict[str, State]:
        """Return those that are older than a time, with the state that they are in."""
        return {**self._hours(keep_from), **self._days(keep_from)}

    def remove(self, old: Mapping[str, State], pieces: pl.DataFrame, keep_from: datetime, removal: Removal) -> str:
        """Remove those of ``old`` that nobody needs and that are as they were; return what the disk refused to note.

        Parameters
        ----------
        old : of `find`, before the lake took the spool; those that the lake could not take left out
        pieces : input, table and part of what the lake has of this cluster
        """
        chosen = find_removable(old, pieces, removal.names)
        if not chosen:
            return ""
        with changing(self._spool):
            return removal.remove(
                (name for name in chosen if _state(self._spool / name) == old[name]), keep_from=keep_from
            )

    def _hours(self, keep_from: datetime) -> dict[str, State]:
        names = [f"{kind}/{path.name}" for kind in ("gpu", "node") for path in (self._spool / kind).glob("*Z.csv")]
        told = {name: hour for name in names if (hour := parse_hour(name)) is not None}
        newest: dict[str, int] = {}
        for source, begin in told.values():
            newest[source] = max(newest.get(source, 0), begin)
        end = int(keep_from.timestamp()) // HOUR_S
        return self._states(name for name, (source, begin) in told.items() if begin < min(end, newest[source]))

    def _days(self, keep_from: datetime) -> dict[str, State]:
        paths = [path for path in (self._spool / "jobs").glob(f"*{SUFFIX}") if parse_name(path)[0]]
        states = self._states(f"jobs/{path.name}" for path in paths)
        if not states:
            return {}
        newest = max(states, key=lambda name: (states[name].changed_ns, name))
        day = f"{keep_from:%Y-%m-%d}"
        old = [name for name in states if name != newest and parse_name(self._spool / name)[1] < day]
        return {name: states[name] for name in old if self._is_over(name, states[name], keep_from)}

    def _is_over(self, name: str, state: State, keep_from: datetime) -> bool:
        """Return whether all jobs of a day ended before a time; it is read again when either changed."""
        if self._stay.get(name) == (state, keep_from):
            return False
        path = self._spool / name
        try:
            with path.open(encoding="utf-8") as file:
                is_ours = file.readline() == "|".join(FORMAT) + "\n"
            ended_s = last_end_s(read_snapshot(path).values()) if is_ours else None
        except (OSError, SourceError, UnicodeDecodeError):  # none of the collector's; the ingest says what is wrong
            ended_s = None
        if ended_s is not None and ended_s < keep_from.timestamp():
            return True
        self._stay[name] = state, keep_from
        return False

    def _states(self, names: Iterable[str]) -> dict[str, State]:
        found = {name: _state(self._spool / name) for name in names}
        return {name: state for name, state in found.items() if state is not None}


def find_removable(names: Collection[str], pieces: pl.DataFrame, gone: Collection[str]) -> set[str]:
    """Return those names of which the lake has no GPU sample any more, nor rows joined with those of a file that stays.

    Parameters
    ----------
    gone : names of files that were removed already
    """
    live = pieces.filter(pl.col("part") != NO_PART)
    samples = live.filter(pl.col("table") == "gpu_samples")["input"].unique()
    sampled = {name for entry in samples for name in entry.split(SEPARATOR)}
    left = set(names) - sampled
    return find_forgettable({*left, *gone}, live) & left if left else left


def _state(path: Path) -> State | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return State(found.st_ino, found.st_size, found.st_mtime_ns)
