"""Parquet parts of the lake: written with measured encodings, read by row range.

A part is sorted by its table's key. A row group holds one long stretch of a series, or several whole short ones, at
least `ROW_GROUP_ROWS` rows together, so that one job is one or few row groups; a long series spans several parts.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.records import Part
from ingest.schemas import TABLES, TableSchema

ROW_GROUP_ROWS: Final = 32_768
"""A row group is closed at the first series end after this many rows."""

COMPRESSION_LEVEL: Final = 1


def arrow_schema(table: TableSchema) -> pa.Schema:
    """Return the Arrow schema in which a table is written: the lake's types, texts as plain strings."""
    fields = []
    for name, dtype in table.columns.items():
        kind = pa.string() if dtype == pl.String else pl.Series(dtype=dtype).to_arrow().type
        fields.append(pa.field(name, kind, nullable=name not in table.never_null))
    return pa.schema(fields)


class PartWriter:
    """Writes one part; use as a context manager, or `discard` it.

    Frames must come in key order. A column that a frame lacks is written as null; an Enum column as text. With
    ``stretches``, each stretch of rows becomes a row group of its own, and the table's delta columns are delta-encoded.
    """

    def __init__(self, path: Path, table: TableSchema, *, stretches: bool = False) -> None:
        self.path = path
        self._table = table
        self._rows = 0
        self._pending: list[pl.DataFrame] = []
        self._pending_rows = 0
        self._schema = _writer_schema(table)
        self._stretches = stretches
        delta = table.delta if stretches else ()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=[name for name in table.columns if name not in (*table.delta, *table.plain)],
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
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, frame: pl.DataFrame, starts: Sequence[int] | np.ndarray[Any, Any] | None = None) -> int:
        """Write rows and return the number of the first of them in the part; ``starts`` are where stretches begin."""
        first = self._rows
        if not frame.height:
            return first
        self._rows += frame.height
        edges = [*(int(s) for s in starts), frame.height] if starts is not None else [0, frame.height]
        begin = 0
        for edge in edges[1:]:
            if self._stretches or self._pending_rows + edge - begin >= ROW_GROUP_ROWS:
                self._pending.append(frame[begin:edge])
                self._flush()
                begin = edge
        if begin < frame.height:
            self._pending.append(frame[begin:])
            self._pending_rows += frame.height - begin
        return first

    def _flush(self) -> None:
        if self._pending:
            tables = [self._to_arrow(frame) for frame in self._pending]
            table = tables[0] if len(tables) == 1 else pa.concat_tables(tables).unify_dictionaries()
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._pending, self._pending_rows = [], 0

    def _to_arrow(self, frame: pl.DataFrame) -> pa.Table:
        arrays = []
        for field in self._schema:
            if field.name not in frame.columns:
                arrays.append(pa.nulls(frame.height, field.type))
                continue
            series = frame[field.name]
            if isinstance(series.dtype, pl.Enum):
                codes = series.to_physical().cast(pl.Int32).to_arrow()
                names = series.dtype.categories.to_arrow().cast(pa.string())
                arrays.append(pa.DictionaryArray.from_arrays(codes, names))
            else:
                want = self._table.columns[field.name]
                array = (series if series.dtype == want else series.cast(want)).to_arrow()
                arrays.append(array if array.type == field.type else array.cast(field.type))
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def close(self) -> Part:
        """Finish the part, make it durable, and return its record."""
        self._flush()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Part(self._table.name, str(self.path), self._rows, self.path.stat().st_size)

    def discard(self) -> None:
        """Throw the part away."""
        with contextlib.suppress(OSError, pa.ArrowException, ValueError):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self._rows


def _writer_schema(table: TableSchema) -> pa.Schema:
    schema = arrow_schema(table)
    if table.name == "gpu_samples":
        at = schema.get_field_index("node")
        schema = schema.set(at, pa.field("node", pa.dictionary(pa.int32(), pa.string()), nullable=False))
    return schema


def write_part(path: Path, table: str, frame: pl.DataFrame) -> Part:
    """Write one frame as one part and return its record."""
    writer = PartWriter(path, TABLES[table])
    try:
        writer.write(frame)
        return writer.close()
    except BaseException:
        writer.discard()
        raise


def write_frame(path: Path, frame: pl.DataFrame, row_group_rows: int | None = None) -> None:
    """Write a small frame of no table durably; nothing is left of it where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # polars itself would not say why it cannot write a file
    frame.write_parquet(content, compression="zstd", row_group_size=row_group_rows)
    try:
        with path.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def read_rows(path: str, row_start: int, rows: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Return ``rows`` rows of a part from ``row_start`` on, reading only the row groups that hold them."""
    file = pq.ParquetFile(path)
    counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    ends = np.cumsum(counts)
    first = int(np.searchsorted(ends, row_start, side="right"))
    last = int(np.searchsorted(ends, row_start + rows, side="left"))
    table = file.read_row_groups(
        list(range(first, last + 1)), columns=list(columns) if columns else None, use_threads=False
    )
    offset = row_start - (int(ends[first - 1]) if first else 0)
    frame = pl.from_arrow(table.slice(offset, rows))
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(f"{path}: a table was expected")
    return frame
