"""How far a lake is behind the sensors: the newest sample of some nodes, those left out that a wrong clock made."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl

from ingest.head import HEAD, MANIFEST, Head, read_head
from ingest.manifest import NO_PART, read_pieces
from ingest.parts import read_part, time_range
from ingest.sources.spool_files import is_segment

SNAPSHOT_NODE: Final = {"gpu": "node", "node": "Node"}
"""Folder of a spool to the column that has the node in its hourly snapshots, whose names do not tell it."""

_TIMED: Final = ("cpu_samples", "node_samples")


class Newest(NamedTuple):
    """The newest sample that is not later than asked, and the newest of all; None where there is none."""

    time: datetime | None = None
    of_all: datetime | None = None


def newest_sample(lake: Path, cluster: str, *, nodes: Collection[str] = (), until: datetime | None = None) -> Newest:
    """Return the newest sample of a cluster, or of some of its nodes: of a GPU, else of a process or node."""
    if not (lake / MANIFEST / HEAD).exists():
        return Newest()
    head = read_head(lake)
    if head.pieces:
        is_mine = (pl.col("cluster") == cluster) & (pl.col("table") == "gpu_samples") & (pl.col("part") != NO_PART)
        mine = read_pieces(lake, head).filter(is_mine)
        if nodes:
            mine = mine.filter(pl.col("node").is_in(sorted(nodes)))
        of_all = mine["last_time"].max()
        if isinstance(of_all, datetime):
            return Newest(of_all if until is None else _newest_until(lake, head, mine, until), of_all)
    return _newest_timed(lake, head, cluster, nodes, until)


def _newest_until(lake: Path, head: Head, pieces: pl.DataFrame, until: datetime) -> datetime | None:
    """Return the newest sample up to a time; of pieces that go beyond it, the rows are read."""
    found = [pieces.filter(pl.col("last_time") <= until)["last_time"].max()]
    paths = {part.file: head.path(lake, part) for part in head.parts}
    beyond = pieces.filter((pl.col("first_time") <= until) & (pl.col("last_time") > until))
    for part, start, rows in beyond.select("part", "row_start", "rows").iter_rows():
        times = read_part(paths[part], start, rows, ["time"])["time"]
        found.append(times.filter(times <= until).max())
    return max((time for time in found if isinstance(time, datetime)), default=None)


def _newest_timed(lake: Path, head: Head, cluster: str, nodes: Collection[str], until: datetime | None) -> Newest:
    """Return the newest sample of processes and nodes; rows are read where the footers do not tell."""
    paths = [head.path(lake, part) for part in head.parts if part.cluster == cluster and part.table in _TIMED]
    ranges = sorted(((*time_range(path, "time"), path) for path in paths), key=lambda one: one[1], reverse=True)
    newest = of_all = None
    for _, last, path in ranges:
        if newest is not None and last <= newest:
            break
        if nodes or (until is not None and last > until):
            rows = read_part(path, columns=["node", "time"]).with_columns(pl.col("node").cast(pl.String))
            times = rows.filter(pl.col("node").is_in(sorted(nodes)))["time"] if nodes else rows["time"]
        else:
            times = pl.Series([last])
        latest = times.max()
        until_then = (times if until is None else times.filter(times <= until)).max()
        if isinstance(latest, datetime) and (of_all is None or latest > of_all):
            of_all = latest
        if isinstance(until_then, datetime) and (newest is None or until_then > newest):
            newest = until_then
    return Newest(newest, of_all)


def snapshot_nodes(spool: Path, names: Iterable[str]) -> set[str]:
    """Return the nodes that have rows in the newest of these hourly snapshots of each source; others are not read.

    A damaged line, which the ingest has set apart, does not hinder the others.
    """
    newest: dict[str, str] = {}
    for name in sorted(names):
        if name.partition("/")[0] in SNAPSHOT_NODE and not is_segment(name):
            newest[name.rpartition("-")[0]] = name
    columns = {name: SNAPSHOT_NODE[name.partition("/")[0]] for name in newest.values()}
    frames = [
        pl.read_csv(
            spool / name,
            columns=[column],
            schema_overrides={column: pl.String},
            quote_char=None,  # such files have no quotes
            truncate_ragged_lines=True,
            encoding="utf8-lossy",
        )
        for name, column in columns.items()
    ]
    return {node for frame in frames for node in frame.to_series().drop_nulls().unique()}
