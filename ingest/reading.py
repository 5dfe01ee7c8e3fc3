"""Bytes of an input file as they are read: hashed, bounded, cut into pieces that end with a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ingest.checksum import BlockHash
from ingest.compiled import count_newlines
from ingest.records import ScanFile
from ingest.sources import delimited
from ingest.sources.inflate import ByteStream, TooLargeError, TruncatedError

PIECE_BYTES: Final = 2 * 1024**2
"""How much text of a large file is parsed at a time."""

MAX_LINE_BYTES: Final = 64 * 1024**2
"""A file with a longer line is refused."""

_NEWLINE = ord("\n")
_ASCII_BLANKS = b" \t\r\x0b\x0c\x1c\x1d\x1e\x1f"


class LineCount:
    """How many lines begin in consecutive bytes, whatever a parser makes of them.

    >>> count = LineCount()
    >>> count.update(b"ab\\nc"), count.update(b"d\\n\\ne"), count.lines
    (None, None, 4)
    """

    def __init__(self, *, at_line_start: bool = True) -> None:
        self.lines = 0
        self.at_line_start = at_line_start

    def update(self, data: bytes) -> None:
        """Take in the next bytes."""
        if data:
            began_here = self.at_line_start
            self.at_line_start = data[-1] == _NEWLINE
            self.lines += count_newlines(data) + began_here - self.at_line_start


def count_content(text: bytes) -> int:
    """Return the lines of a text that hold more than blanks.

    >>> count_content(b"a\\n\\n \\r\\nb")
    2
    """
    lines = text.split(b"\n")
    if text.isascii():
        return sum(1 for line in lines if line.strip(_ASCII_BLANKS))
    return sum(1 for line in lines if line.decode("utf-8", "replace").strip())


class Source:
    """A stream that is hashed as it is read, and that ends where it is damaged instead of raising."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.hash = BlockHash()
        self.count = LineCount()
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
        self.count.update(data)
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
    """The lines that begin in [start, stop) of a stream positioned one byte before ``start`` (at it, if 0).

    ``lines`` is their number, the header's with them, as counted from the bytes alone.
    """

    def __init__(self, source: Source, file: ScanFile, header_bytes: int) -> None:
        self._source = source
        self._file = file
        self._header_bytes = header_bytes
        self.hash = BlockHash()
        self.lines = 0
        self._lines_before = 0
        self._left = 0
        self._open_line = False

    def chunks(self) -> Iterator[bytes]:
        """Yield pieces that end with a line, as `delimited.iter_chunks`."""
        yield from delimited.iter_chunks(self, PIECE_BYTES, self._first())

    def _first(self) -> bytes:
        """Return the first bytes of the first own line (the header, or the end of the line before, dropped)."""
        self._left = (self._file.stop or 0) - self._file.start
        if self._file.start == 0:
            return self.read(max(PIECE_BYTES, self._header_bytes))[self._header_bytes :]
        before = self._source.read(1)
        self._lines_before = self._source.count.lines
        data = self.read(PIECE_BYTES)
        while before != b"\n" and data and b"\n" not in data:
            data = self.read(PIECE_BYTES)
        return data if before == b"\n" else data[data.find(b"\n") + 1 :] if b"\n" in data else b""

    def read(self, size: int = -1, /) -> bytes:
        """Return bytes inside the bounds, then the rest of the line that crosses the end."""
        if self._left > 0:
            data = self._source.read(min(size, self._left))
            self.hash.update(data)
            self.lines = self._source.count.lines - self._lines_before
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


def count_rows(stream: ByteStream, head: bytes = b"", *, with_header: bool = False) -> int:
    """Return the lines with content of ``head`` and all that is left of a stream, the first (a header) left out.

    >>> import io
    >>> count_rows(io.BytesIO(b"a,b\\n1,2\\n\\n3,4"), with_header=True)
    2
    """
    rows = 0
    for chunk in delimited.iter_chunks(stream, PIECE_BYTES, head):
        rows += count_content(chunk[chunk.find(b"\n") + 1 or len(chunk) :] if with_header else chunk)
        with_header = False
    return rows
