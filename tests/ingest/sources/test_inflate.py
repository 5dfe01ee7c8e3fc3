"""Compressed streams: all that lies before a damage comes out, the damage is told, and nothing grows without end."""

from __future__ import annotations

import gzip
import io
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ingest.sources import inflate
from ingest.sources.inflate import InflatedStream, TooLargeError, TruncatedError

TEXT = b"".join(b"%d,%d\n" % (i, i * 7919 % 1000) for i in range(40_000))
SKIPPABLE = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"


def zstd(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(content)


def streamed(content: bytes) -> bytes:
    """A zstd frame that does not tell its size."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    return compressor.compress(content) + compressor.flush()


WHOLE = {
    "gzip": gzip.compress(TEXT, 1),
    "gzip of two members": gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:], 1),
    "zstd": zstd(TEXT),
    "zstd with a checksum": zstd(TEXT, write_checksum=True),
    "zstd without its size": streamed(TEXT),
    "zstd of two frames": zstd(TEXT[:1000]) + zstd(TEXT[1000:], write_checksum=True),
    "zstd behind a skippable frame": SKIPPABLE + zstd(TEXT) + SKIPPABLE,
    "zstd of equal bytes": zstd(b"\n" * 300_000),
}


def read_all(packed: bytes, codec: str, size: int = 10_000) -> tuple[bytes, Exception | None]:
    """What comes out, and the error at its end."""
    stream = InflatedStream(io.BytesIO(packed), codec)
    pieces = []
    try:
        while data := stream.read(size):
            pieces.append(data)
    except (TruncatedError, TooLargeError) as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def library_prefix(packed: bytes, codec: str) -> bytes:
    """What the codec's own library gets out of a stream that may be cut short."""
    if codec == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True).read()
    found = b""
    while packed:
        inflater = zlib.decompressobj(wbits=31)
        found += inflater.decompress(packed)
        packed = inflater.unused_data
    return found


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("size", [1_000, -1])
def test_a_whole_stream_comes_out_whole(name, size):
    found, error = read_all(WHOLE[name], name.split()[0], size)
    assert (found, error) == (library_prefix(WHOLE[name], name.split()[0]), None)


@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1))
def test_a_stream_cut_anywhere_gives_all_that_can_be_had_and_tells_unless_a_part_of_it_ended_there(name, where):
    packed, codec = WHOLE[name], name.split()[0]
    cut = packed[: int(where * (len(packed) - 1))]
    found, error = read_all(cut, codec)
    assert found == library_prefix(cut, codec)
    ends = {0, len(SKIPPABLE), len(zstd(TEXT[:1000])), len(gzip.compress(TEXT[:1000])), len(SKIPPABLE + zstd(TEXT))}
    assert isinstance(error, TruncatedError) or len(cut) in ends


@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1), st.integers(1, 255))
def test_a_damaged_stream_never_raises_anything_else(name, where, flip):
    packed = bytearray(WHOLE[name])
    packed[int(where * (len(packed) - 1))] ^= flip
    read_all(bytes(packed), name.split()[0])


def test_after_a_damage_every_further_read_raises_again():
    stream = InflatedStream(io.BytesIO(WHOLE["gzip"][:-20]), "gzip")
    stream.read(-1)
    for _ in range(2):
        with pytest.raises(TruncatedError):
            stream.read(1)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_stream_that_grows_too_much_is_stopped_once_it_is_past_the_free_bytes(monkeypatch, codec):
    bomb = gzip.compress(b"\0" * 5_000_000) if codec == "gzip" else zstd(b"\0" * 5_000_000)
    assert read_all(bomb, codec)[1] is None
    monkeypatch.setattr(inflate, "INFLATION_FREE_BYTES", 1_000_000)
    found, error = read_all(bomb, codec)
    assert isinstance(error, TooLargeError)
    assert len(found) < 3_000_000


def test_a_limit_of_bytes_is_kept():
    stream = InflatedStream(io.BytesIO(WHOLE["zstd"]), "zstd", max_bytes=200_000)
    assert 0 < len(stream.read(-1)) <= 200_000
    with pytest.raises(TooLargeError, match="inflates past 200000 bytes"):
        stream.read(1)


def test_what_is_no_zstd_frame_is_told():
    found, error = read_all(b"no frame", "zstd")
    assert found == b""
    assert "no zstd frame" in str(error)
