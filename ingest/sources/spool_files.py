"""Which files of a spool are what. Light: by names alone, so that the plan and the follower need read nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from ingest.sources.sacct_files import is_accounting

SPOOL_FILE: Final = "spool.json"
"""A folder with such a file is a spool."""

SPOOL_CLUSTER: Final = "live"
"""The cluster of a spool's rows where none is given."""

SILENT: Final = "silent"
"""The kind of what lies in a spool and is not for the lake, or not yet."""

FOLDERS: Final = ("gpu", "process", "node", "devices", "events", "labels", "jobs")

_SEGMENT = re.compile(
    rf"^(?P<folder>{'|'.join(FOLDERS)})/(?P<node>[A-Za-z0-9][A-Za-z0-9._-]*)-\d{{8}}T\d{{6}}(?:\.\d{{1,6}})?Z-\d{{6}}\.csv$"
)


def find_spool(names: Iterable[str]) -> str | None:
    """Return the folder that is a spool ('' for the top of the archive), None where there is none or are several.

    >>> find_spool(["a/spool.json", "a/gpu/n-20261124T224200.1Z-000001.csv"]), find_spool(["gpu/0001/5-n.csv"])
    ('a', None)
    """
    found = [PurePosixPath(name).parent.as_posix() for name in names if PurePosixPath(name).name == SPOOL_FILE]
    return found[0].removeprefix(".") if len(found) == 1 else None


def classify_spool(name: str) -> str:
    """Return the kind of a file by its name below the spool: a key of `KINDS`, ``unknown``, ``other`` or `SILENT`.

    >>> [classify_spool(f"gpu/{name}") for name in ("n-20261124T224200.1Z-000001.csv", "x.csv.open", "notes.txt")]
    ['spool_gpu', 'silent', 'other']
    """
    folder, _, file = name.rpartition("/")
    if is_passing(file) or (not folder and file == SPOOL_FILE):
        return SILENT
    if folder == "jobs" and is_accounting(file):
        return "sacct"
    if not file.endswith(".csv"):
        return "other"
    return f"spool_{folder}" if folder in FOLDERS else "unknown"


def is_passing(file: str) -> bool:
    """Return whether a file is about to become another (still open, or half written), or is a lock.

    >>> [is_passing(name) for name in ("a.csv.open", ".a.csv.part", "LOCK", "a.csv")]
    [True, True, True, False]
    """
    return file.endswith(".open") or file.startswith((".", "LOCK"))


def is_segment(name: str) -> bool:
    """Return whether a file is never touched again, by its name below the spool; the others are snapshots.

    >>> is_segment("gpu/n1-20261124T224200.123456Z-000001.csv"), is_segment("gpu/prometheus-dcgm-20261124T22.csv")
    (True, False)
    """
    return _SEGMENT.match(name) is not None


def node_of(name: str) -> str:
    """Return the node whose samples a segment has; empty where it has none, or is no segment.

    >>> node_of("gpu/n1-20261124T224200.123456Z-000001.csv"), node_of("gpu/prometheus-dcgm-20261124T22.csv")
    ('n1', '')
    """
    found = _SEGMENT.match(name)
    return found["node"] if found is not None and found["folder"] in ("gpu", "process", "node") else ""
