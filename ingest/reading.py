"""Bytes of an input file as they are read: hashed, bounded, cut into pieces that end with a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ingest.checksum import BlockHash
from ingest.records import ScanFile
from ingest.sources import delimited
from ingest.sources.inflate import ByteStream, TooLargeError, TruncatedError

PIECE_BYTES: Final = 2 * 1024**2
"""How much text of a large file is parsed at a time."""

MAX_LINE_BYTES: Final = 64 * 1024**2
"""A file with a longer line is refused."""


class Source:
    """A stream that is hashed as it is read, and that ends where it is damaged instead of raising."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.hash = BlockHash()
        self.ended = False
        self.problem: tuple[str, str] | None = None
        self._line_bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, nothing at the end or from the damage on."""
        if self.ended:
            return b""
        try:
            data = self._stream.read(size)
        except TooLargeError as error:
            self.problem, data = ("too_large", str(error)), b""
        except TruncatedError as error:
            self.problem, data = ("truncated", str(error)), b""
        if not data:
            self.ended = True
        self.hash.update(data)
        end = data.rfind(b"\n") + 1
        self._line_bytes = len(data) - end + (0 if end else self._line_bytes)
        if self._line_bytes > MAX_LINE_BYTES:
            self.problem, self.ended = ("too_large", f"a line of over {MAX_LINE_BYTES} bytes"), True
        return data

    def fill(self, size: int, expected: int) -> bytes:
        """Return a little over ``size`` bytes, or all there are; ``expected`` is how many there may be."""
        pieces: list[bytes] = []
        have = 0
        while have <= size and (piece := self.read(min(size, max(expected - have, 0)) + 1)):
            pieces.append(piece)
            have += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Share:
    """The lines that begin in [start, stop) of a stream positioned one byte before ``start`` (at it, if 0)."""

    def __init__(self, source: Source, file: ScanFile, header_bytes: int) -> None:
        self._source = source
        self._file = file
        self._header_bytes = header_bytes
        self.hash = BlockHash()
        self.lines = 0
        self._left = 0
        self._open_line = False

    def chunks(self) -> Iterator[bytes]:
        """Yield pieces that end with a line, as `delimited.iter_chunks`."""
        for chunk in delimited.iter_chunks(self, PIECE_BYTES, self._first()):
            self.lines += chunk.count(b"\n")
            yield chunk

    def _first(self) -> bytes:
        """Return the first bytes of the first own line (the header, or the end of the line before, dropped)."""
        self._left = (self._file.stop or 0) - self._file.start
        if self._file.start == 0:
            data = self.read(max(PIECE_BYTES, self._header_bytes))
            self.lines += data[: self._header_bytes].count(b"\n")
            return data[self._header_bytes :]
        before = self._source.read(1)
        data = self.read(PIECE_BYTES)
        while before != b"\n" and data and b"\n" not in data:
            data = self.read(PIECE_BYTES)
        return data if before == b"\n" else data[data.find(b"\n") + 1 :] if b"\n" in data else b""

    def read(self, size: int = -1, /) -> bytes:
        """Return bytes inside the bounds, then the rest of the line that crosses the end."""
        if self._left > 0:
            data = self._source.read(min(size, self._left))
            self.hash.update(data)
            self._left -= len(data)
            self._open_line = not data.endswith(b"\n")
            return data
        if not self._open_line:
            return b""
        data = self._source.read(64 * 1024)
        end = data.find(b"\n") + 1
        self._open_line = bool(data) and not end
        return data[:end] if end else data


def cut_pieces(body: bytes, size: int) -> Iterator[bytes]:
    """Yield pieces of at least ``size`` bytes, all but the last ending with a line."""
    begin = 0
    while begin < len(body):
        end = body.find(b"\n", begin + size) + 1
        end = end if end else len(body)
        yield body[begin:end]
        begin = end


def count_rows(body: bytes, source: Source) -> int:
    """Return the lines with content of ``body`` and whatever is left of the source."""
    chunks = delimited.iter_chunks(source, PIECE_BYTES, body)
    return sum(1 for chunk in chunks for line in chunk.split(b"\n") if line.strip())
