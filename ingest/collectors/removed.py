"""What a follower removed from a spool, as it noted it there: collectors do not write it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

NOTES: Final = ".follower.json"
"""In the spool; the follower alone writes it."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What is, or is about to be, gone.

    ``names``: files that the lake has not forgotten yet. ``hours``: source of hourly snapshots (`snapshots.parse_name`)
    to the hour (since 1970) before which they are gone. ``days``: name of a daily snapshot of Slurm's accounting to the
    time in epoch seconds before which all of its jobs had ended.
    """

    names: frozenset[str] = frozenset()
    hours: Mapping[str, int] = field(default_factory=dict)
    days: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of the note."""
        told = {"removed": sorted(self.names), "hours": dict(self.hours), "days": dict(self.days)}
        return json.dumps(told) + "\n"


def parse_removed(text: str) -> Removed:
    """Return what a note says; nothing where it is none.

    >>> parse_removed('{"removed": ["gpu/a.csv"]}').names, parse_removed("{").names
    (frozenset({'gpu/a.csv'}), frozenset())
    """
    try:
        told = json.loads(text)
        names = frozenset(map(str, told["removed"]))
        hours = {str(source): int(hour) for source, hour in told.get("hours", {}).items()}
        return Removed(names, hours, {str(name): float(until_s) for name, until_s in told.get("days", {}).items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return Removed()


def read_removed(root: Path) -> Removed:
    """Return what a follower noted in a spool; nothing where it noted nothing, or for itself alone."""
    try:
        return parse_removed((root / NOTES).read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return Removed()
