"""The structures of a Parquet file as bytes: page headers, column chunks, row groups, footer. Pure, and writing only.

They are thrift structs in the compact protocol. A field starts with a byte: how far its number is from the one before,
and its type (5 and 6: whole numbers, 8: bytes, 9: list, 12: struct); a struct ends with a zero.

References
----------
Apache Parquet, "parquet.thrift", version 2.10; Apache Thrift, "Thrift compact protocol encoding".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

MAGIC: Final = b"PAR1"
PLAIN, RLE, DELTA_BINARY_PACKED, RLE_DICTIONARY = 0, 3, 5, 8
UNCOMPRESSED, ZSTD = 0, 6
INT32, INT64, FLOAT, DOUBLE, BYTE_ARRAY = 1, 2, 4, 5, 6

_COLUMN_ORDER: Final = b"\x1c\x00\x00"
_BYTES: Final = tuple(bytes((i,)) for i in range(256))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A column of the schema: its physical type, whether it may be null, and what its values mean (thrift fields)."""

    name: str
    physical: int
    is_required: bool
    meaning: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of one row group, as the footer tells of it; ``dictionary_at`` is None without a dictionary.

    ``least`` and ``greatest`` are plain values, or both None where nothing is said of them.
    """

    values: int
    nulls: int
    encoding: int
    codec: int
    bytes_plain: int
    bytes_stored: int
    data_at: int
    dictionary_at: int | None
    least: bytes | None
    greatest: bytes | None


def varint(value: int) -> bytes:
    """Return a number of at least 0, seven bits a byte, the lowest first.

    >>> varint(300).hex()
    'ac02'
    """
    if value < 0x80:
        return _BYTES[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(value: int) -> bytes:
    """Return a whole number, those of small magnitude short.

    >>> [number(value).hex() for value in (0, -1, 1, 64)]
    ['00', '01', '02', '8001']
    """
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _text(data: bytes) -> bytes:
    return varint(len(data)) + data


def _many(kind: int, items: Sequence[bytes]) -> bytes:
    head = bytes((len(items) << 4 | kind,)) if len(items) < 15 else bytes((0xF0 | kind,)) + varint(len(items))
    return head + b"".join(items)


def _page_start(kind: int, bytes_plain: int, stored: bytes, crc: int) -> bytes:
    signed = crc - 2**32 if crc >= 2**31 else crc
    return b"\x15%b\x15%b\x15%b\x15%b" % (number(kind), number(bytes_plain), number(len(stored)), number(signed))


def data_page_header(values: int, encoding: int, bytes_plain: int, stored: bytes, crc: int) -> bytes:
    """Return the header of a data page; ``values`` counts nulls too, levels are run-length encoded."""
    body = b"\x1c\x15%b\x15%b\x15\x06\x15\x06\x00\x00" % (number(values), number(encoding))
    return _page_start(0, bytes_plain, stored, crc) + body


def dictionary_page_header(values: int, bytes_plain: int, stored: bytes, crc: int) -> bytes:
    """Return the header of a dictionary page of plain values."""
    return _page_start(2, bytes_plain, stored, crc) + b"\x3c\x15%b\x15\x00\x00\x00" % number(values)


@cache
def _chunk_start(leaf: Leaf, encodings: tuple[int, ...], codec: int) -> bytes:
    return b"".join(
        (
            b"\x26\x00\x1c\x15" + number(leaf.physical),
            b"\x19" + _many(5, [number(encoding) for encoding in encodings]),
            b"\x19" + _many(8, [_text(leaf.name.encode())]),
            b"\x15" + number(codec),
        )
    )


def column_chunk(leaf: Leaf, chunk: Chunk) -> bytes:
    """Return what the footer says of a column of a row group."""
    encodings = (RLE, chunk.encoding) if chunk.dictionary_at is None else (PLAIN, RLE, chunk.encoding)
    parts = [
        _chunk_start(leaf, encodings, chunk.codec),
        b"\x16" + number(chunk.values),
        b"\x16" + number(chunk.bytes_plain),
        b"\x16" + number(chunk.bytes_stored),
        b"\x26" + number(chunk.data_at),
    ]
    if chunk.dictionary_at is None:
        parts.append(b"\x3c\x36" + number(chunk.nulls))
    else:
        parts.append(b"\x26" + number(chunk.dictionary_at) + b"\x1c\x36" + number(chunk.nulls))
    if chunk.least is not None and chunk.greatest is not None:
        parts.append(b"\x28" + _text(chunk.greatest) + b"\x18" + _text(chunk.least))
    return b"".join(parts) + b"\x00\x00\x00"


def row_group(leaves: Sequence[Leaf], chunks: Sequence[Chunk], rows: int, ordinal: int) -> bytes:
    """Return what the footer says of a row group: one chunk a leaf."""
    columns = [column_chunk(leaf, chunk) for leaf, chunk in zip(leaves, chunks, strict=True)]
    begin = chunks[0].data_at if chunks[0].dictionary_at is None else chunks[0].dictionary_at
    plain, stored = sum(c.bytes_plain for c in chunks), sum(c.bytes_stored for c in chunks)
    sizes = (number(plain), number(rows), number(begin), number(stored))
    last = b"\x14" + number(ordinal) if ordinal < 2**15 else b""  # the format has 16 bits for it, and can do without
    return b"\x19" + _many(12, columns) + b"\x16%b\x16%b\x26%b\x16%b" % sizes + last + b"\x00"


def footer(leaves: Sequence[Leaf], row_groups: Sequence[bytes], rows: int, created_by: str) -> bytes:
    """Return the end of a file: its metadata, how long they are, and the magic."""
    root = b"\x48" + _text(b"schema") + b"\x15" + number(len(leaves)) + b"\x00"
    schema = [root, *[_leaf(leaf) for leaf in leaves]]
    metadata = b"".join(
        (
            b"\x15\x04\x19",
            _many(12, schema),
            b"\x16" + number(rows),
            b"\x19" + _many(12, row_groups),
            b"\x28" + _text(created_by.encode()),
            b"\x19" + _many(12, [_COLUMN_ORDER] * len(leaves)),
            b"\x00",
        )
    )
    return metadata + len(metadata).to_bytes(4, "little") + MAGIC


def _leaf(leaf: Leaf) -> bytes:
    repetition = number(0 if leaf.is_required else 1)
    name = _text(leaf.name.encode())
    return b"\x15" + number(leaf.physical) + b"\x25" + repetition + b"\x18" + name + leaf.meaning + b"\x00"


def whole_number_meaning(bits: int, *, is_signed: bool) -> bytes:
    """Return the thrift fields that make a physical integer one of 8, 16, 32 or 64 bits."""
    converted = (15 if is_signed else 11) + (8, 16, 32, 64).index(bits)
    sign = b"\x11" if is_signed else b"\x12"
    return b"\x25" + number(converted) + b"\x4c\xac\x13" + bytes((bits,)) + sign + b"\x00\x00"


TEXT_MEANING: Final = b"\x25\x00\x4c\x1c\x00\x00"
"""A byte array is a text in UTF-8."""

MICROS_UTC_MEANING: Final = b"\x25\x14\x4c\x8c\x11\x1c\x2c\x00\x00\x00\x00"
"""A physical integer is a time in microseconds, UTC."""
