"""A Parquet file of ``gpu_samples``, encoded here in a fraction of the CPU time that the general writer takes.

Most columns of a stretch are constant, absent or small numbers. What is constant or absent costs next to nothing; small
numbers become places in a dictionary of whole bytes, which compress better and faster than packed bits; so do powers
that are whole hundredths of a watt. A column has one page in a row group, with its checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import zstandard

from ingest import parquet_format as pf
from ingest.compiled import hundredths, number_values, pack_deltas
from ingest.parquet_format import Chunk, Leaf

Array = np.ndarray[Any, Any]

CREATED_BY: Final = "jobwatt"
WIDEST_RANGE: Final = 2**18
"""Numbers over a wider range do not become a dictionary."""

MOST_RANGE_BYTES: Final = 4096
"""Of longer texts the least and the greatest are not told: each row group would repeat them."""

_PER_UNIT: Final = 100.0
_PHYSICAL: Final[dict[pa.DataType, tuple[int, bytes]]] = {
    pa.int64(): (pf.INT64, b""),
    pa.int16(): (pf.INT32, pf.whole_number_meaning(16, is_signed=True)),
    pa.uint8(): (pf.INT32, pf.whole_number_meaning(8, is_signed=False)),
    pa.uint16(): (pf.INT32, pf.whole_number_meaning(16, is_signed=False)),
    pa.uint32(): (pf.INT32, pf.whole_number_meaning(32, is_signed=False)),
    pa.float32(): (pf.FLOAT, b""),
    pa.float64(): (pf.DOUBLE, b""),
    pa.timestamp("us", "UTC"): (pf.INT64, pf.MICROS_UTC_MEANING),
}


@dataclass(frozen=True, slots=True)
class Page:
    """Values as they are stored: a dictionary's plain values (None: no dictionary), and what refers to them."""

    encoding: int
    body: bytes
    dictionary: tuple[int, bytes] | None = None


class SampleFile:
    """Writes row groups into an open file; `close` writes the footer, and leaves the file open.

    It needs what is compiled (`ingest.compiled.is_available`).

    Parameters
    ----------
    schema
        Types of the columns, those of the lake's tables of numbers; a text is a dictionary, and required.
    plain, delta
        Columns that get no dictionary, and those that are stored as differences.
    with_range
        Columns of which the least and the greatest value are told; not of floats, which have an order of their own.

    Raises
    ------
    ValueError
        A column is of another type; when writing, a table is of another schema, or a required column has a null.
    """

    def __init__(
        self,
        file: IO[bytes],
        schema: pa.Schema,
        *,
        level: int,
        plain: Sequence[str] = (),
        delta: Sequence[str] = (),
        with_range: Sequence[str] = (),
    ) -> None:
        self._file, self._plain, self._delta, self._with_range = file, set(plain), set(delta), set(with_range)
        self._schema, self._leaves = schema, [_leaf(field) for field in schema]
        self._zstd = zstandard.ZstdCompressor(level=level)
        self._row_groups: list[bytes] = []
        self._rows = 0
        self._at = len(pf.MAGIC)
        if any(pa.types.is_floating(schema.field(name).type) for name in self._with_range & set(schema.names)):
            raise ValueError("with_range names a column of floats; give whole numbers, times or texts")
        file.write(pf.MAGIC)

    def write_table(self, table: pa.Table) -> None:
        """Write a row group; nothing where the table is empty."""
        if not table.schema.equals(self._schema):
            raise ValueError(f"a row group has the columns {table.schema}; give {self._schema}")
        if not table.num_rows:
            return
        chunks = [self._write_column(leaf, column) for leaf, column in zip(self._leaves, table.columns, strict=True)]
        self._row_groups.append(pf.row_group(self._leaves, chunks, table.num_rows, len(self._row_groups)))
        self._rows += table.num_rows

    def close(self) -> None:
        """Write the footer."""
        self._file.write(pf.footer(self._leaves, self._row_groups, self._rows, CREATED_BY))

    def _write_column(self, leaf: Leaf, column: pa.ChunkedArray) -> Chunk:
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        nulls = array.null_count
        if nulls and leaf.is_required:
            raise ValueError(f"{leaf.name} is null in {nulls} of {len(array)} rows; it must be known in each")
        present = _present(array) if 0 < nulls < len(array) else None
        levels = b"" if leaf.is_required else _levels(len(array), nulls, present)
        if nulls == len(array):
            return self._write_chunk(len(array), nulls, levels, Page(pf.PLAIN, b""), None)
        if isinstance(array, pa.DictionaryArray):
            page, edges = _texts(array)
        else:
            values = _values(array) if present is None else _values(array)[present]
            least, greatest = values.min(), values.max()
            page = self._page(leaf.name, values, least, greatest)
            edges = _plain(np.array([least])), _plain(np.array([greatest]))
        is_told = leaf.name in self._with_range and max(map(len, edges)) <= MOST_RANGE_BYTES
        return self._write_chunk(len(array), nulls, levels, page, edges if is_told else None)

    def _page(self, name: str, values: Array, least: Any, greatest: Any) -> Page:
        if least == greatest and not (least == 0 and values.dtype.kind == "f"):  # a zero may be a negative one
            return Page(pf.RLE_DICTIONARY, _repeated(len(values)), (1, _plain(values[:1])))
        if name in self._delta:
            return Page(pf.DELTA_BINARY_PACKED, pack_deltas(values))
        found = None if name in self._plain else _numbered(values, least, greatest)
        return found or Page(pf.PLAIN, _plain(values))

    def _write_chunk(self, n: int, nulls: int, levels: bytes, page: Page, edges: tuple[bytes, bytes] | None) -> Chunk:
        begin, plain_bytes, dictionary_at = self._at, 0, None
        # differences are as small as they get; compression would only take time
        codec = pf.UNCOMPRESSED if page.encoding == pf.DELTA_BINARY_PACKED else pf.ZSTD
        if page.dictionary is not None:
            count, data = page.dictionary
            dictionary_at = self._at
            stored = self._zstd.compress(data)
            header = pf.dictionary_page_header(count, len(data), stored, zlib.crc32(stored))
            self._write(header, stored)
            plain_bytes += len(header) + len(data)
        data_at = self._at
        body = levels + page.body if levels else page.body
        stored = body if codec == pf.UNCOMPRESSED else self._zstd.compress(body)
        header = pf.data_page_header(n, page.encoding, len(body), stored, zlib.crc32(stored))
        self._write(header, stored)
        plain_bytes += len(header) + len(body)
        least, greatest = edges or (None, None)
        return Chunk(
            n, nulls, page.encoding, codec, plain_bytes, self._at - begin, data_at, dictionary_at, least, greatest
        )

    def _write(self, header: bytes, stored: bytes) -> None:
        self._file.write(header)
        self._file.write(stored)
        self._at += len(header) + len(stored)


def _leaf(field: pa.Field) -> Leaf:
    if pa.types.is_dictionary(field.type):
        return Leaf(field.name, pf.BYTE_ARRAY, not field.nullable, pf.TEXT_MEANING)
    if field.type not in _PHYSICAL:
        raise ValueError(f"{field.name} is {field.type}; give one of {', '.join(map(str, _PHYSICAL))}, or texts")
    physical, meaning = _PHYSICAL[field.type]
    return Leaf(field.name, physical, not field.nullable, meaning)


def _present(array: pa.Array) -> Array:
    """Return which values are there, as booleans of shape (n,)."""
    bits = np.frombuffer(array.buffers()[0], np.uint8)
    return np.unpackbits(bits, count=array.offset + len(array), bitorder="little")[array.offset :].view(np.bool_)


def _levels(n: int, nulls: int, present: Array | None) -> bytes:
    """Return the definition levels: 1 where a value is there."""
    if present is None:
        data = pf.varint(n << 1) + (b"\x00" if nulls else b"\x01")
    else:
        bits = np.packbits(present, bitorder="little")
        data = pf.varint(len(bits) << 1 | 1) + bits.tobytes()
    return len(data).to_bytes(4, "little") + data


def _values(array: pa.Array) -> Array:
    """Return the values, anything where one is null; without pyarrow's to_numpy, which imports pandas."""
    dtype = "<i8" if pa.types.is_timestamp(array.type) else array.type.to_pandas_dtype()
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def _plain(values: Array) -> bytes:
    """Return values as Parquet's plain encoding has them, small integers in four bytes."""
    if values.dtype.itemsize < 4:
        values = values.astype("<i4")
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _numbered(values: Array, least: Any, greatest: Any) -> Page | None:
    """Return values as places in a dictionary in their order; None where that would not make them smaller."""
    is_float = values.dtype.kind == "f"
    whole = hundredths(values) if values.dtype == np.float32 else None if is_float else values
    if whole is None:
        return None
    first, last = (round(float(edge) * _PER_UNIT) if is_float else int(edge) for edge in (least, greatest))
    width = last - first + 1
    if width > WIDEST_RANGE:
        return None
    from_first = np.subtract(whole, first, dtype=np.int64 if whole.dtype.itemsize > 2 else np.int32)
    found = number_values(from_first.astype(np.int32, copy=False), width)
    if found is None or (len(found[0]) > 256 and 3 * len(found[0]) > len(values)):
        return None
    words = found[0].astype(np.int64) + first
    dictionary = (words / _PER_UNIT if is_float else words).astype(values.dtype)
    return Page(pf.RLE_DICTIONARY, _places(found[1]), (len(dictionary), _plain(dictionary)))


def _places(codes: Array) -> bytes:
    """Return places in a dictionary: how many bits each takes, and one run of them."""
    size = codes.dtype.itemsize
    data = codes.astype(codes.dtype.newbyteorder("<"), copy=False).tobytes()
    return bytes((8 * size,)) + pf.varint((-(-len(codes) // 8)) << 1 | 1) + data + bytes(-len(codes) % 8 * size)


def _repeated(n: int) -> bytes:
    """Return n times the first place in a dictionary."""
    return b"\x08" + pf.varint(n << 1) + b"\x00"


def _texts(array: pa.DictionaryArray) -> tuple[Page, tuple[bytes, bytes]]:
    """Return a page of texts, of which only those that occur are stored, with the least and the greatest of them."""
    codes = _values(array.indices)
    least, greatest = int(codes.min()), int(codes.max())
    met = np.arange(least, least + 1)
    if least != greatest:
        met = np.flatnonzero(np.bincount(codes, minlength=len(array.dictionary)))
    texts = [array.dictionary[i].as_py().encode() for i in met.tolist()]
    dictionary = len(met), b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    if least == greatest:
        return Page(pf.RLE_DICTIONARY, _repeated(len(codes)), dictionary), (texts[0], texts[0])
    places = np.zeros(len(array.dictionary), np.uint8 if len(met) <= 256 else np.uint32)
    places[met] = np.arange(len(met), dtype=places.dtype)
    return Page(pf.RLE_DICTIONARY, _places(places[codes]), dictionary), (min(texts), max(texts))
