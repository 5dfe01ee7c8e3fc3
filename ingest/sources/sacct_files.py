"""Which files are what ``sacct`` printed, and which columns we ask it for. Light: the collectors use it too."""

from __future__ import annotations

from typing import Final

_NAMES: Final = ("sacct.txt", "sacct.json")

FORMAT: Final = (
    *("JobIDRaw", "JobID", "Cluster", "User", "UID", "Partition", "State", "ExitCode", "DerivedExitCode"),
    *("Submit", "Eligible", "Start", "End", "Suspended", "TimelimitRaw", "AllocNodes", "NodeList", "ReqCPUS"),
    *("ReqMem", "Priority", "Flags", "ReqTRES", "AllocTRES", "Constraints"),
)
"""The columns that the lake keeps, the one that users may write a bar into last. A job's name is not among them: it may
hold anything, rows of other jobs included, and the lake keeps none."""


def is_accounting(file: str) -> bool:
    """Return whether a file's name says that sacct printed it.

    >>> [is_accounting(name) for name in ("sacct.txt", "test-2026-11-24.sacct.json", "notes.txt", "mysacct.txt")]
    [True, True, False, False]
    """
    return file in _NAMES or file.endswith(tuple(f".{name}" for name in _NAMES))
