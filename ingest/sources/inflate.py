"""Compressed streams read with care: all that lies before a damage comes out, and nothing inflates without end."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import zstandard

from ingest.errors import SourceError

MAX_INFLATION: Final = 500
"""A compressed file may not grow by more than this factor once it is past `INFLATION_FREE_BYTES`."""

INFLATION_FREE_BYTES: Final = 64 * 1024**2

_PIECE_BYTES: Final = 128 * 1024
_ZSTD_MAGIC: Final = 0xFD2FB528
_ZSTD_SKIPPABLE: Final = 0x184D2A5
_ZSTD_MAX_WINDOW: Final = 2**27
_RLE_BLOCK: Final = 1


class ByteStream(Protocol):
    """Anything with ``read(n)``."""

    def read(self, size: int = -1, /) -> bytes: ...


class TruncatedError(SourceError):
    """A stream ended before its end mark, or is damaged from there on."""


class TooLargeError(SourceError):
    """A member inflates past the limit."""


class InflatedStream:
    """What a compressed file holds. Everything before a damage is given out; the next read raises.

    Raises
    ------
    TruncatedError
        Where the stream is damaged or ends early.
    TooLargeError
        Past ``max_bytes``, or where it grows more than `MAX_INFLATION` times.
    """

    def __init__(self, file: ByteStream, codec: str, max_bytes: int | None = None) -> None:
        self._source = _Counted(file)
        self._pieces = (_gzip_pieces if codec == "gzip" else _zstd_pieces)(self._source)
        self._max_bytes = max_bytes
        self._produced = 0
        self._ready, self._at = b"", 0
        self.problem: SourceError | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Return ``size`` bytes, fewer before the end or a damage, none at the end."""
        pieces: list[bytes] = []
        left = size
        while left and self._fill():
            piece = self._ready[self._at :] if left < 0 else self._ready[self._at : self._at + left]
            self._at += len(piece)
            left -= len(piece) if left > 0 else 0
            pieces.append(piece)
        if self.problem is not None and not pieces and size:
            raise self.problem
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _fill(self) -> bool:
        """Have some bytes ready; return whether there are any."""
        while self._at >= len(self._ready) and self.problem is None:
            try:
                self._ready, self._at = next(self._pieces), 0
            except StopIteration:
                return False
            except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
                self.problem = TruncatedError(str(error))
            except TruncatedError as error:
                self.problem = error
            else:
                self._check_size()
        return self.problem is None

    def _check_size(self) -> None:
        self._produced += len(self._ready)
        if self._max_bytes is not None and self._produced > self._max_bytes:
            self.problem = TooLargeError(f"inflates past {self._max_bytes} bytes")
        elif self._produced > max(INFLATION_FREE_BYTES, MAX_INFLATION * self._source.consumed):
            self.problem = TooLargeError(f"inflates to more than {MAX_INFLATION} times its size")


class _Counted:
    """A file that counts the bytes that were read of it."""

    def __init__(self, file: ByteStream) -> None:
        self._file = file
        self.consumed = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.consumed += len(data)
        return data


def _gzip_pieces(file: ByteStream) -> Iterator[bytes]:
    """Yield what a gzip file holds."""
    with gzip.GzipFile(fileobj=file) as stream:  # type: ignore[call-overload]
        while piece := stream.read1(_PIECE_BYTES):
            yield piece


def _zstd_pieces(file: ByteStream) -> Iterator[bytes]:
    """Yield what a file of zstd frames holds, block by block.

    The library's own stream does not tell a frame that was cut short from one that ended. A block holds at most
    128 KiB, so nothing grows large here.

    References
    ----------
    Collet, Kucherawy 2021, Zstandard Compression, RFC 8878, section 3.1.
    """

    def take(size: int) -> bytes:
        data = file.read(size)
        while len(data) < size:
            more = file.read(size - len(data))
            if not more:
                raise TruncatedError("the file ends inside a zstd frame")
            data += more
        return data

    while start := file.read(1):
        magic = start + take(3)
        number = int.from_bytes(magic, "little")
        if number >> 4 == _ZSTD_SKIPPABLE:
            left = int.from_bytes(take(4), "little")
            while left:
                left -= len(take(min(left, _PIECE_BYTES)))
        elif number == _ZSTD_MAGIC:
            yield from _zstd_blocks(magic, take)
        else:
            raise TruncatedError("no zstd frame where one is due")


def _zstd_blocks(magic: bytes, take: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield what each block of one frame holds."""
    inflater = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW).decompressobj()
    descriptor = take(1)
    flags = descriptor[0]
    is_single, size_flag = flags >> 5 & 1, flags >> 6
    rest = (0 if is_single else 1) + (0, 1, 2, 4)[flags & 3] + (1 << size_flag if size_flag else is_single)
    yield inflater.decompress(magic + descriptor + take(rest))
    is_last = False
    while not is_last:
        head = take(3)
        header = int.from_bytes(head, "little")
        is_last = bool(header & 1)
        size = 1 if header >> 1 & 3 == _RLE_BLOCK else header >> 3
        if size > _PIECE_BYTES:
            raise TruncatedError("a zstd block of an impossible size")
        has_checksum = is_last and flags >> 2 & 1
        yield inflater.decompress(head + take(size))
        if has_checksum:
            yield inflater.decompress(take(4))
