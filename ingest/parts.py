"""Parquet parts of the lake: written with measured encodings, read by row range.

A part is a row of batches, each sorted by input file and its table's key; the samples of a series are in the order of
time. Batches follow each other as their files were met, so a part as a whole is in order only where those were.
A row group holds one long stretch of a series, or several whole short ones, at least `ROW_GROUP_ROWS` rows together,
so that one job is one or few row groups; a long series spans several parts.
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
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PolarsError

from ingest.compiled import is_available
from ingest.disk import Syncing
from ingest.errors import LakeError
from ingest.records import Part
from ingest.sample_file import SampleFile
from ingest.schemas import TABLES, TableSchema

ROW_GROUP_ROWS: Final = 32_768
"""A row group is closed at the first series end after this many rows."""

FRAME_ROWS: Final = 16_384
"""So many rows of a part are read at a time."""

COMPRESSION_LEVEL: Final = 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def arrow_schema(table: TableSchema) -> pa.Schema:
    """Return the Arrow schema in which a table is written: the lake's types, texts as plain strings."""
    fields = []
    kinds = {dtype: pl.Series(dtype=dtype).to_arrow().type for dtype in set(table.columns.values())}
    for name, dtype in table.columns.items():
        kind = pa.string() if dtype == pl.String else kinds[dtype]
        fields.append(pa.field(name, kind, nullable=name not in table.never_null))
    return pa.schema(fields)


class PartWriter:
    """Writes one part; use as a context manager, or `discard` it.

    Each frame must be in key order. A column that a frame lacks is written as null; an Enum column as text. With
    ``stretches``, each stretch of rows becomes a row group of its own, and the table's delta columns are delta-encoded.
    """

    def __init__(self, path: Path, table: TableSchema, *, stretches: bool = False) -> None:
        self.path = path
        self._table = table
        self._rows = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._schema = _writer_schema(table)
        self.stretches = stretches
        delta = table.delta if stretches else ()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        try:
            self._writer = self._open_writer(delta)
        except BaseException:
            self._file.close()
            path.unlink(missing_ok=True)
            raise

    def _open_writer(self, delta: Sequence[str]) -> SampleFile | pq.ParquetWriter:
        table = self._table
        if table.name == "gpu_samples" and is_available():
            return SampleFile(
                self._file,
                self._schema,
                level=COMPRESSION_LEVEL,
                plain=(*table.plain, *table.delta),
                delta=delta,
                with_range=table.key,
            )
        bare = {*table.delta, *table.plain}
        return pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=[name for name in table.columns if name not in bare],
            column_encoding=dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
            write_statistics=list(table.key),
            write_batch_size=65_536,
            write_page_checksum=True,
            store_schema=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise

    def write(self, frame: pl.DataFrame, starts: Sequence[int] | np.ndarray[Any, Any] | None = None) -> int:
        """Write rows and return the number of the first of them in the part; ``starts`` are where stretches begin."""
        first = self._rows
        if not frame.height:
            return first
        self._rows += frame.height
        table = self._to_arrow(frame)
        edges = [*(int(s) for s in starts), frame.height] if starts is not None else [0, frame.height]
        begin = 0
        for edge in edges[1:]:
            if self.stretches or self._pending_rows + edge - begin >= ROW_GROUP_ROWS:
                self._pending.append(table.slice(begin, edge - begin))
                self._flush()
                begin = edge
        if begin < frame.height:
            self._pending.append(table.slice(begin))
            self._pending_rows += frame.height - begin
        return first

    def _flush(self) -> None:
        if self._pending:
            tables = self._pending
            table = tables[0] if len(tables) == 1 else pa.concat_tables(tables).unify_dictionaries()
            if isinstance(self._writer, SampleFile):
                self._writer.write_table(table)
            else:
                self._writer.write_table(table, row_group_size=table.num_rows)
            self._pending, self._pending_rows = [], 0

    def _to_arrow(self, frame: pl.DataFrame) -> pa.Table:
        arrays = []
        have = {series.name: series for series in frame}  # a feature table has thousands of columns
        for field in self._schema:
            if field.name not in have:
                arrays.append(pa.nulls(frame.height, field.type))
                continue
            series = have[field.name]
            if isinstance(series.dtype, pl.Enum):
                codes = series.to_physical().cast(pl.Int32).to_arrow()
                names = series.dtype.categories.to_arrow().cast(pa.string())
                arrays.append(pa.DictionaryArray.from_arrays(codes, names))
            else:
                want = self._table.columns[field.name]
                array = (series if series.dtype == want else series.cast(want)).to_arrow()
                arrays.append(array if array.type == field.type else array.cast(field.type))
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def close(self, syncing: Syncing | None = None) -> Part:
        """Finish the part, make it durable (with ``syncing``: later), and return its record."""
        self._flush()
        self._writer.close()
        self._file.flush()
        if syncing is not None:
            syncing.add(self._file)
        else:
            os.fsync(self._file.fileno())
            self._file.close()
        return Part(self._table.name, str(self.path), self._rows, self.path.stat().st_size)

    def discard(self) -> None:
        """Throw the part away."""
        if isinstance(self._writer, pq.ParquetWriter):
            with contextlib.suppress(OSError, pa.ArrowException, ValueError):
                self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


def _writer_schema(table: TableSchema) -> pa.Schema:
    schema = arrow_schema(table)
    if table.name == "gpu_samples":
        at = schema.get_field_index("node")
        schema = schema.set(at, pa.field("node", pa.dictionary(pa.int32(), pa.string()), nullable=False))
    return schema


def write_part(path: Path, table: str, frame: pl.DataFrame) -> Part:
    """Write one frame as one part and return its record."""
    return write_table(path, TABLES[table], frame)


def write_table(path: Path, table: TableSchema, frame: pl.DataFrame) -> Part:
    """Write one frame as one part of a table that has columns of its own, and return its record."""
    writer = PartWriter(path, table)
    try:
        writer.write(frame, range(0, frame.height, ROW_GROUP_ROWS))
        return writer.close()
    except BaseException:
        writer.discard()
        raise


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
