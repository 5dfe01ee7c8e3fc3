"""Snapshots of an hour in a spool: rows of the same hour that come later complete the file, and never shorten it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ingest.collectors.spool import HEADERS, on_disk, write_whole
from ingest.errors import SpoolBusyError, SpoolError

HOUR_S: Final = 3600
KEYS: Final[Mapping[str, tuple[str, ...]]] = {"gpu": ("node", "gpu_index", "timestamp"), "node": ("Node", "Time")}
"""Kind to the columns that tell its rows apart, the time last."""


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


def write_hours(root: Path, kind: str, source: str, rows: Mapping[tuple[str, ...], list[str]]) -> list[Path]:
    """Merge rows into the files of their hours, and return the files that changed.

    A cell that has a value replaces one that has not, or an older one; a row or value that is not there now stays.

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
        path = root / kind / f"prometheus-{source}-{stamp}.csv"
        before = read_rows(path, kind)
        merged = complete(before, found)
        if merged != before:
            _write(path, kind, merged)
            changed.append(path)
    return changed


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
