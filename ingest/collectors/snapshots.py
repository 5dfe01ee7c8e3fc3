"""Snapshots of an hour in a spool: rows of the same hour that come later complete the file, and never shorten it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ingest.collectors.removed import read_removed
from ingest.collectors.spool import HEADERS, on_disk, write_whole
from ingest.errors import SpoolBusyError, SpoolError

HOUR_S: Final = 3600
KEYS: Final[Mapping[str, tuple[str, ...]]] = {"gpu": ("node", "gpu_index", "timestamp"), "node": ("Node", "Time")}
"""Kind to the columns that tell its rows apart, the time last."""

CHANGING: Final = ".snapshots.lock"
_NAME = re.compile(r"^(?P<source>(?:gpu|node)/prometheus-.+)-(?P<hour>\d{8}T\d{2}Z)\.csv$")


@contextmanager
def sole_writer(root: Path, source: str) -> Iterator[None]:
    """Hold the right to write the snapshots of one source; the collector of the node itself may run beside.

    Raises
    ------
    SpoolBusyError
        Another process has it.
    """
    with on_disk(root):
        descriptor = os.open(root / f".prometheus-{source}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SpoolBusyError(
            f"{root}: another process collects from {source}; stop that one, or use another"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def changing(root: Path) -> Iterator[None]:
    """Hold the right to change snapshots, hourly or daily: a collector writes one, or a follower removes some.

    Each has it for a moment, so that nothing is removed that was completed meanwhile.
    """
    path = root / CHANGING
    with on_disk(root):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except PermissionError:  # another user's, which can be held all the same
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with on_disk(root):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def source_name(kind: str, source: str) -> str:
    """Return a source of snapshots as `parse_name` tells it.

    >>> source_name("gpu", "site-dcgm")
    'gpu/prometheus-site-dcgm'
    """
    return f"{kind}/prometheus-{source}"


def parse_name(name: str) -> tuple[str, int] | None:
    """Return source and hour (since 1970) of an hourly snapshot by its name below the spool; None for other files.

    >>> parse_name("gpu/prometheus-site-dcgm-19700102T01Z.csv"), parse_name("gpu/prometheus-mine.csv")
    (('gpu/prometheus-site-dcgm', 25), None)
    """
    found = _NAME.match(name)
    if found is None:
        return None
    try:
        begin = datetime.strptime(found["hour"], "%Y%m%dT%HZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return found["source"], int(begin.timestamp()) // HOUR_S


def write_hours(root: Path, kind: str, source: str, rows: Mapping[tuple[str, ...], list[str]]) -> list[Path]:
    """Merge rows into the files of their hours, and return the files that changed.

    A cell that has a value replaces one that has not, or an older one; a row or value that is not there now stays.
    Hours that a follower removed are left out: the lake has had them.

    Raises
    ------
    SpoolError
        A file of that name is not of jobwatt, or the disk does not take it; the old file stays.
    """
    hours: dict[int, dict[tuple[str, ...], list[str]]] = {}
    for key, cells in rows.items():
        hours.setdefault(int(float(key[-1])) // HOUR_S, {})[key] = cells
    changed = []
    for hour, found in sorted(hours.items()):
        stamp = datetime.fromtimestamp(hour * HOUR_S, UTC).strftime("%Y%m%dT%HZ")
        path = root / f"{source_name(kind, source)}-{stamp}.csv"
        with changing(root):
            if hour < first_hour(root, kind, source):
                continue
            before = read_rows(path, kind)
            merged = complete(before, found)
            if merged != before:
                _write(path, kind, merged)
                changed.append(path)
    return changed


def first_hour(root: Path, kind: str, source: str) -> int:
    """Return the first hour (since 1970) of a source that no follower has removed."""
    return read_removed(root).hours.get(source_name(kind, source), 0)


def complete(
    rows: Mapping[tuple[str, ...], list[str]], more: Mapping[tuple[str, ...], list[str]]
) -> dict[tuple[str, ...], list[str]]:
    """Return the rows of both; where a row is in both, each cell that ``more`` has a value for is its.

    >>> complete({("a",): ["1", "2"]}, {("a",): ["", "3"], ("b",): ["4", ""]})
    {('a',): ['1', '3'], ('b',): ['4', '']}
    """
    merged = dict(rows)
    for key, cells in more.items():
        old = rows.get(key)
        merged[key] = cells if old is None else [new or was for new, was in zip(cells, old, strict=True)]
    return merged


def _write(path: Path, kind: str, rows: Mapping[tuple[str, ...], list[str]]) -> None:
    ordered = sorted(rows.items(), key=lambda item: (float(item[0][-1]), item[0]))
    text = "".join(f"{','.join(cells)}\n" for cells in ([HEADERS[kind]], *(cells for _, cells in ordered)))
    with on_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def read_rows(path: Path, kind: str) -> dict[tuple[str, ...], list[str]]:
    """Return the rows of a snapshot by their keys; none where there is no such file."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    names = HEADERS[kind].split(",")
    at = [names.index(name) for name in KEYS[kind]]
    rows = [line.split(",") for line in lines[1:]]
    if lines[:1] != [HEADERS[kind]] or any(len(cells) != len(names) for cells in rows):
        raise SpoolError(f"{path} is not as jobwatt writes it; move it away, and collect those hours again")
    return {tuple(cells[i] for i in at): cells for cells in rows}
