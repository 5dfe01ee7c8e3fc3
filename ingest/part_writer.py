"""Parts of the lake are written: with measured encodings, in row groups that hold whole stretches of a series.

A row group holds one long stretch of a series, or several whole short ones, at least `ROW_GROUP_ROWS` rows together, so
that one job is one or few row groups; a long series spans several parts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.compiled import is_available
from ingest.disk import Syncing
from ingest.records import Part
from ingest.sample_file import SampleFile
from ingest.schemas import TABLES, TableSchema

ROW_GROUP_ROWS: Final = 32_768
"""A row group is closed at the first series end after this many rows."""

COMPRESSION_LEVEL: Final = 1


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

    def write(
        self,
        frame: pl.DataFrame,
        starts: Sequence[int] | np.ndarray[Any, Any] | None = None,
        *,
        more: Mapping[str, pa.Array] | None = None,
    ) -> int:
        """Write rows and return the number of the first of them in the part.

        Parameters
        ----------
        starts : where stretches begin
        more : columns that the frame lacks, of the part's own types: a frame of thousands takes its time
        """
        first = self._rows
        if not frame.height:
            return first
        self._rows += frame.height
        table = self._to_arrow(frame, more or {})
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

    def _to_arrow(self, frame: pl.DataFrame, more: Mapping[str, pa.Array]) -> pa.Table:
        arrays = []
        have = {series.name: series for series in frame}  # a feature table has thousands of columns
        for field in self._schema:
            name = field.name
            if name not in have:
                arrays.append(more[name] if name in more else pa.nulls(frame.height, field.type))
                continue
            series = have[name]
            if isinstance(series.dtype, pl.Enum):
                codes = series.to_physical().cast(pl.Int32).to_arrow()
                names = series.dtype.categories.to_arrow().cast(pa.string())
                arrays.append(pa.DictionaryArray.from_arrays(codes, names))
            else:
                want = self._table.columns[name]
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
