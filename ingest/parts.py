"""Parquet parts of the lake, read by row range; and small frames of no table, written.

A part is a row of batches, each sorted by input file and its table's key; the samples of a series are in the order of
time. Batches follow each other as their files were met, so a part as a whole is in order only where those were.
`ingest.part_writer` writes them.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PolarsError

from ingest.errors import LakeError

FRAME_ROWS: Final = 16_384
"""So many rows of a part are read at a time."""


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def write_frame(path: Path, frame: pl.DataFrame, *, row_group_rows: int | None = None, durable: bool = True) -> None:
    """Write a small frame of no table, its pages with checksums; nothing is left of it where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            pq.write_table(table, file, compression="zstd", write_page_checksum=True, row_group_size=row_group_rows)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def open_part(path: Path) -> pq.ParquetFile:
    """Return a part's file; a page of it whose checksum does not fit is an error when it is read."""
    return pq.ParquetFile(path, page_checksum_verification=True)


def time_range(path: Path, column: str) -> tuple[datetime, datetime]:
    """Return the first and the last time in a column of a part's key, by its footer.

    Raises
    ------
    LakeError
        If the part is missing or damaged, or its footer does not tell.
    """
    with reading(path), open_part(path) as file:
        at = file.metadata.schema.names.index(column)
        groups = [file.metadata.row_group(i).column(at).statistics for i in range(file.metadata.num_row_groups)]
        if not groups or any(group is None or not group.has_min_max for group in groups):
            raise pa.ArrowInvalid(f"no statistics of {column}")
        return min(group.min for group in groups), max(group.max for group in groups)


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Say in one line, as a `LakeError`, that a part cannot be read, where anything in it is not as it was written."""
    try:
        yield
    except (OSError, pa.ArrowException, PolarsError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise LakeError(
            f"{path} cannot be read ({reason}); restore it from a backup, or ingest the sources into a new lake "
            "(`jobwatt lake check` names all that is damaged)"
        ) from error


def read_part(
    path: str | Path, row_start: int = 0, rows: int | None = None, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Return rows of a part, all where ``rows`` is None, reading only the row groups that hold them.

    Raises
    ------
    LakeError
        If the part is missing or damaged.
    """
    reader = PartReader(keep=1)
    if rows is None:
        rows = reader.height(path) - row_start
    frames = list(reader.frames(path, row_start, rows, columns))
    return frames[0] if len(frames) == 1 else pl.concat(frames)


class PartReader:
    """Reads stretches of parts, a bounded number of rows at a time.

    A row group of which a stretch is wanted is kept for a while, since neighbours often lie in it as well.

    Parameters
    ----------
    keep : how many files, and how many row groups, stay at hand
    """

    def __init__(self, keep: int = 4) -> None:
        self._keep = keep
        self._files: OrderedDict[str, tuple[pq.ParquetFile, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int, tuple[str, ...] | None], pl.DataFrame] = OrderedDict()

    def height(self, path: str | Path) -> int:
        """Return the number of rows of a part."""
        return self._open(str(path))[1][-1]

    def frames(
        self,
        path: str | Path,
        row_start: int,
        rows: int,
        columns: Sequence[str] | None = None,
        *,
        around_us: tuple[int, int] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Yield ``rows`` rows from ``row_start`` on, at most `FRAME_ROWS` at a time; one empty frame for none.

        Parameters
        ----------
        around_us : row groups of which no ``time`` is from the first to the second, that excluded, are left out; of
            the others all rows come, whatever their time

        Raises
        ------
        LakeError
            If the part is missing or damaged, or has fewer rows.
        """
        name, wanted = str(path), None if columns is None else tuple(columns)
        ends = self._open(name)[1]
        stop = row_start + rows
        if stop > ends[-1]:
            raise LakeError(f"{path} has {ends[-1]} rows, not the {stop} of the index; see: jobwatt lake check")
        if not rows:
            yield self._empty(name, wanted)
        for group in range(bisect_right(ends, row_start) - 1, len(ends) - 1):
            first, last = max(row_start, ends[group]), min(stop, ends[group + 1])
            if first >= last:
                break
            if around_us is not None and not self._is_around(name, group, around_us):
                continue
            if (first, last) == (ends[group], ends[group + 1]):
                yield from self._stream(name, group, wanted)
            else:
                yield from self._group(name, group, wanted)[first - ends[group] : last - ends[group]].iter_slices(
                    FRAME_ROWS
                )

    def _open(self, name: str) -> tuple[pq.ParquetFile, list[int]]:
        """Return a part's file, and where its row groups begin and the last one ends."""
        if name not in self._files:
            with reading(name):
                file = open_part(Path(name))
                rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            self._files[name] = file, [0, *accumulate(rows)]
            if len(self._files) > self._keep:
                self._files.popitem(last=False)[1][0].close()
        self._files.move_to_end(name)
        return self._files[name]

    def _stream(self, name: str, group: int, columns: tuple[str, ...] | None) -> Iterator[pl.DataFrame]:
        """Yield a whole row group, decoded bit by bit."""
        with reading(name):
            batches = self._open(name)[0].iter_batches(
                FRAME_ROWS, row_groups=[group], columns=columns and list(columns), use_threads=False
            )
        left = self._rows(name, group)
        while left > 0:
            with reading(name):
                batch = next(batches, None)
                if batch is None or batch.num_rows > left:
                    raise pa.ArrowInvalid("a page has another number of rows than the row group")
                frame = _frame(pa.Table.from_batches([batch]), columns)
            left -= frame.height
            yield frame

    def _group(self, name: str, group: int, columns: tuple[str, ...] | None) -> pl.DataFrame:
        key = (name, group, columns)
        if key not in self._groups:
            file = self._open(name)[0]
            with reading(name):
                table = file.read_row_group(group, columns=columns and list(columns), use_threads=False)
                if table.num_rows != self._rows(name, group):
                    raise pa.ArrowInvalid("a page has another number of rows than the row group")
                self._groups[key] = _frame(table, columns)
            if len(self._groups) > self._keep:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _is_around(self, name: str, group: int, around_us: tuple[int, int]) -> bool:
        """Whether a row group may have a time in a span; it may where the footer does not tell."""
        with reading(name):
            file = self._open(name)[0]
            at = file.metadata.schema.names.index("time")
            edges = file.metadata.row_group(group).column(at).statistics
            if edges is None or not edges.has_min_max:
                return True
            return _us(edges.min) < around_us[1] and _us(edges.max) >= around_us[0]

    def _rows(self, name: str, group: int) -> int:
        ends = self._open(name)[1]
        return ends[group + 1] - ends[group]

    def _empty(self, name: str, columns: tuple[str, ...] | None) -> pl.DataFrame:
        with reading(name):
            return _frame(self._open(name)[0].schema_arrow.empty_table(), columns)


def _us(time: datetime) -> int:
    """Return a time in microseconds since the epoch, to the last one."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def _frame(table: pa.Table, columns: Sequence[str] | None) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    if not isinstance(frame, pl.DataFrame):
        raise TypeError("a table was expected")
    return frame if columns is None else frame.select(columns)
