"""Several pieces of one series merged by time, a bounded number of rows in memory at once.

A *run* is one piece: rows of one input file, sorted by time. Runs that lie one after another are open one after
another; where many lie across each other (a file in no order at all), some are merged into a run on disk first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq

from ingest.parts import FRAME_ROWS, PartReader

MOST_OPEN: Final = 8
"""So many runs are open at once; each has `FRAME_ROWS` rows in memory."""

SOURCE: Final = "source"
"""The column that says which run a row is of."""

_MIXED: Final = -1


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of a part, sorted by time, each time once. A run on disk has rows of several sources, and says of which."""

    path: str
    row_start: int
    rows: int
    first_time: datetime
    last_time: datetime
    source: int


def merge(runs: Sequence[Run], reader: PartReader, spill: Path) -> Iterator[pl.DataFrame]:
    """Yield the rows of all runs sorted by time and source; all rows of one time are in one frame.

    Parameters
    ----------
    runs : each of at least one row
    spill : runs on disk are files whose names begin like this; they are gone when all is done
    """
    number = count()
    while _depth(runs) > MOST_OPEN:
        groups = [runs[i : i + MOST_OPEN] for i in range(0, len(runs), MOST_OPEN)]
        runs = [_write(Path(f"{spill}-{next(number):05d}.parquet"), group, reader) for group in groups]
    yield from _merge_open(runs, reader)
    _remove(runs)


def _remove(runs: Iterable[Run]) -> None:
    for run in runs:
        if run.source == _MIXED:
            Path(run.path).unlink()


def _depth(runs: Iterable[Run]) -> int:
    """Return how many runs lie across one moment at most."""
    edges = sorted(edge for run in runs for edge in ((run.first_time, 0), (run.last_time, 1)))
    depth = most = 0
    for _, is_end in edges:
        depth += -1 if is_end else 1
        most = max(most, depth)
    return most


def _write(path: Path, runs: Sequence[Run], reader: PartReader) -> Run:
    """Merge a few runs into one on disk, and return that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer: pq.ParquetWriter | None = None
    with path.open("wb") as file:
        for frame in _merge_open(runs, reader):
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd", write_page_checksum=True)
            writer.write_table(table, row_group_size=FRAME_ROWS)
        if writer is not None:
            writer.close()
    _remove(runs)
    first, last = min(run.first_time for run in runs), max(run.last_time for run in runs)
    return Run(str(path), 0, sum(run.rows for run in runs), first, last, _MIXED)


class _Open:
    """A run that is being read: the rows at hand, empty when all are taken."""

    def __init__(self, run: Run, reader: PartReader) -> None:
        self._frames = _frames(run, reader)
        self.frame = next(self._frames)

    @property
    def bound(self) -> datetime:
        """The time up to which the run's rows are at hand."""
        bound: datetime = self.frame["time"][-1]
        return bound

    def take(self, bound: datetime) -> pl.DataFrame:
        """Return the rows up to ``bound``, and have the next ones at hand if that is all of them."""
        n = int(self.frame["time"].search_sorted(bound, "right"))
        taken, self.frame = self.frame[:n], self.frame[n:]
        if not self.frame.height:
            self.frame = next(self._frames, self.frame)
        return taken


def _frames(run: Run, reader: PartReader) -> Iterator[pl.DataFrame]:
    """Yield a run's rows, all of one time in one frame."""
    frames = reader.frames(run.path, run.row_start, run.rows)
    if run.source == _MIXED:
        return _whole_times(frames)
    return (frame.with_columns(pl.lit(run.source, pl.Int32).alias(SOURCE)) for frame in frames)


def _whole_times(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    held: pl.DataFrame | None = None
    for found in frames:
        frame = found if held is None else pl.concat([held, found])
        n = int(frame["time"].search_sorted(frame["time"][-1], "left"))
        held = frame[n:]
        if n:
            yield frame[:n]
    if held is not None:
        yield held


def _merge_open(runs: Sequence[Run], reader: PartReader) -> Iterator[pl.DataFrame]:
    """Yield the rows of runs of which at most a few lie across each other."""
    waiting = sorted(runs, key=lambda run: (run.first_time, run.source), reverse=True)
    active: list[_Open] = []
    while waiting or active:
        if not active:
            active.append(_Open(waiting.pop(), reader))
        bound = min(opened.bound for opened in active)
        while waiting and waiting[-1].first_time <= bound:
            active.append(_Open(waiting.pop(), reader))
            bound = min(bound, active[-1].bound)
        frames = [taken for opened in active if (taken := opened.take(bound)).height]
        active = [opened for opened in active if opened.frame.height]
        yield frames[0] if len(frames) == 1 else pl.concat(frames).sort("time", SOURCE)
