"""Where bytes come from: a folder, a tar (plain, gzip, zstd), or a URL, read member by member and never unpacked.

Nothing here follows a link, leaves the archive's root, or inflates a member without an end.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Protocol

import zstandard

from ingest.errors import SourceError

DEFAULT_MAX_MEMBER_BYTES: Final = 256 * 1024**3
"""A member may inflate to this much (the largest public file has 42 GB)."""

MAX_INFLATION: Final = 500
"""A compressed file may not grow by more than this factor once it is past `INFLATION_FREE_BYTES`."""

INFLATION_FREE_BYTES: Final = 64 * 1024**2

_TAR_SUFFIXES = {".tar": "", ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tzst": "zstd"}
_FILE_CODECS = {".gz": "gzip", ".zst": "zstd"}
_TAR_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, zstandard.ZstdError)


class ByteStream(Protocol):
    """Anything with ``read(n)``."""

    def read(self, size: int = -1, /) -> bytes: ...


class TruncatedError(SourceError):
    """A compressed stream ended before its end mark, or is damaged from there on."""


class TooLargeError(SourceError):
    """A member inflates past the limit."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: its name below the root, and where its bytes are.

    ``offset`` is None for a file of its own; a number is where it starts in an uncompressed tar; -1 means that it can only
    be met by streaming through the archive. ``size`` is the stored size in bytes, -1 where unknown. ``archive_name`` is the
    name with the folders above the root, where it differs.
    """

    name: str
    location: str
    size: int
    offset: int | None = None
    archive_name: str = ""

    def below(self, root: str) -> Member:
        """Return this member named below ``root``."""
        return replace(self, name=self.name.removeprefix(root + "/"), archive_name=self.name) if root else self

    @property
    def codec(self) -> str:
        """``gzip``, ``zstd`` or nothing, by the name's ending."""
        return _FILE_CODECS.get(PurePosixPath(self.name).suffix, "")

    @property
    def plain_name(self) -> str:
        """The name without the ending of a compressed file."""
        return self.name.removesuffix(".gz").removesuffix(".zst") if self.codec else self.name


@dataclass(frozen=True, slots=True)
class Listing:
    """What an archive holds: its members by name, and those refused, with reason code and detail."""

    members: tuple[Member, ...]
    refused: tuple[tuple[str, str, str], ...]


def is_url(source: str) -> bool:
    """Return whether ``source`` is a URL (``s3://…``) and not a local path."""
    return "://" in source


def storage_options(source: str, anonymous: bool) -> dict[str, Any]:
    """Return fsspec's options for ``source``; anonymous access is S3's ``anon``."""
    return {"anon": True} if anonymous and source.startswith(("s3://", "s3a://")) else {}


def tar_codec(source: str) -> str | None:
    """Return the codec of a tar by its ending ('' for a plain one), None for anything else.

    >>> tar_codec("a.tar.gz"), tar_codec("a.tar"), tar_codec("a.csv.gz")
    ('gzip', '', None)
    """
    return next((codec for suffix, codec in _TAR_SUFFIXES.items() if source.endswith(suffix)), None)


def list_members(source: str, *, anonymous: bool = False, max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES) -> Listing:
    """Return the members of a folder, file, tar or URL.

    Raises
    ------
    SourceError
        If there is nothing at ``source``, or it is no archive at all.
    """
    codec = tar_codec(source)
    if codec is not None:
        listing = _list_tar(source, codec, anonymous, max_member_bytes)
    elif is_url(source):
        listing = _list_url(source, anonymous)
    else:
        listing = _list_path(Path(source))
    large = [m for m in listing.members if m.size > max_member_bytes]
    refused = [(m.name, "too_large", f"{m.size} bytes, the limit is {max_member_bytes}") for m in large]
    kept = tuple(m for m in listing.members if m.size <= max_member_bytes)
    return Listing(kept, (*listing.refused, *refused))


def _list_path(path: Path) -> Listing:
    if path.is_file():
        return Listing((Member(path.name, str(path), path.stat().st_size),), ())
    if not path.is_dir():
        raise SourceError(f"{path}: no such file or folder; give a folder, a .tar, .tar.gz, .tar.zst or a URL")
    members, refused = [], []
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        for link in [name for name in subfolders if os.path.islink(os.path.join(folder, name))]:  # noqa: PTH114, PTH118
            refused.append(((Path(folder) / link).relative_to(path).as_posix(), "unsafe_member", "a link"))
        for name in sorted(files):
            file = Path(folder) / name
            relative = file.relative_to(path).as_posix()
            if file.is_symlink() or not file.is_file():
                refused.append((relative, "unsafe_member", "a link or a device"))
            else:
                members.append(Member(relative, str(file), file.stat().st_size))
    return Listing(tuple(members), tuple(refused))


def _list_url(source: str, anonymous: bool) -> Listing:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(source, **storage_options(source, anonymous))
        found = fs.find(root, detail=True)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"{source}: cannot be listed ({error}); check the URL, or try --anonymous") from error
    if not found:
        raise SourceError(f"{source}: nothing there; check the bucket and the prefix")
    base = str(root).rstrip("/")
    members = [
        Member(
            PurePosixPath(str(path)).relative_to(base).as_posix() if str(path) != base else PurePosixPath(base).name,
            fs.unstrip_protocol(path),
            int(info.get("size") or -1),
        )
        for path, info in sorted(found.items())
        if info.get("type") != "directory"
    ]
    return Listing(tuple(members), ())


def _list_tar(source: str, codec: str, anonymous: bool, max_member_bytes: int) -> Listing:
    members: dict[str, Member] = {}
    refused: list[tuple[str, str, str]] = []
    try:
        with open_location(source, anonymous) as file, _open_tar(file, codec) as tar:
            try:
                for info in tar:
                    problem = _member_problem(info)
                    name = PurePosixPath(info.name).as_posix()
                    if problem:
                        refused.append((info.name, "unsafe_member", problem))
                    elif info.isreg() and name in members:
                        refused.append((name, "repeated_member", "the archive's first one is taken"))
                    elif info.isreg():
                        members[name] = Member(name, source, info.size, -1 if codec else info.offset_data)
                    if codec and info.size > max_member_bytes:
                        refused.append((name, "too_large", "the archive is read up to here only"))
                        break
            except (*_TAR_ERRORS, TruncatedError) as error:
                refused.append((PurePosixPath(source).name, "truncated", str(error) or type(error).__name__))
    except (*_TAR_ERRORS, TruncatedError) as error:
        raise SourceError(f"{source}: cannot be read as a tar archive ({error})") from error
    return Listing(tuple(members.values()), tuple(refused))


def _member_problem(info: tarfile.TarInfo) -> str:
    path = PurePosixPath(info.name)
    if path.is_absolute():
        return "an absolute path"
    if ".." in path.parts:
        return "'..' in its path"
    if info.issym() or info.islnk():
        return "a link"
    if not (info.isreg() or info.isdir()):
        return "a device or special file"
    return "a sparse file" if info.isreg() and info.sparse is not None else ""


@contextmanager
def open_location(location: str, anonymous: bool = False) -> Iterator[IO[bytes]]:
    """Open a local path or URL for reading bytes."""
    if is_url(location):
        import fsspec

        with fsspec.open(location, "rb", **storage_options(location, anonymous)) as file:
            yield file
    else:
        with Path(location).open("rb") as file:
            yield file


def _open_tar(file: IO[bytes], codec: str) -> tarfile.TarFile:
    if not codec:
        return tarfile.open(fileobj=file, mode="r:")
    return tarfile.open(fileobj=_Guarded(file, codec), mode="r|")  # type: ignore[call-overload, no-any-return]


class _Guarded(io.RawIOBase):
    """A decompressing stream that refuses to inflate without end, and says where a damaged stream stops."""

    def __init__(self, file: IO[bytes], codec: str, max_bytes: int | None = None) -> None:
        self._file = file
        self._stream: Any = gzip.GzipFile(fileobj=file) if codec == "gzip" else _zstd_reader(file)
        self._max_bytes = max_bytes
        self.produced = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise TruncatedError(str(error)) from error
        self.produced += len(data)
        if self._max_bytes is not None and self.produced > self._max_bytes:
            raise TooLargeError(f"inflates past {self._max_bytes} bytes")
        if self.produced > INFLATION_FREE_BYTES:
            consumed = max(self._file.tell(), 1)
            if self.produced / consumed > MAX_INFLATION:
                raise TooLargeError(f"{consumed} bytes inflate to {self.produced}, over {MAX_INFLATION} times")
        return data


def _zstd_reader(file: IO[bytes]) -> Any:
    return zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file, read_across_frames=True)


class _Slice(io.RawIOBase):
    """The bytes ``[offset, offset + size)`` of an open file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        file.seek(offset)
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted) if wanted else b""
        self._left -= len(data)
        return data


@contextmanager
def open_member(
    member: Member, *, start: int = 0, anonymous: bool = False, max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES
) -> Iterator[ByteStream]:
    """Open one member that has bytes of its own (not one that is only met by streaming), decompressed.

    ``start`` skips that many bytes of an uncompressed member.

    Raises
    ------
    TruncatedError, TooLargeError
        While reading.
    """
    with open_location(member.location, anonymous) as file:
        stored: Any = file
        if member.offset is not None:
            stored = _Slice(file, member.offset + start, member.size - start)
        elif start:
            file.seek(start)
        yield _Guarded(stored, member.codec, max_member_bytes) if member.codec else stored


def stream_members(
    location: str, wanted: Iterable[Member], *, anonymous: bool, max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES
) -> Iterator[tuple[Member, ByteStream]]:
    """Yield the wanted members (by their name in the archive) of a compressed tar, each with its stream.

    A stream must be read before the next member is asked for.
    """
    codec = tar_codec(location) or ""
    by_name = {member.archive_name or member.name: member for member in wanted}
    with open_location(location, anonymous) as file, _open_tar(file, codec) as tar:
        left = set(by_name)
        while left:
            try:
                info = tar.next()
            except (*_TAR_ERRORS, TruncatedError):
                return
            if info is None:
                return
            name = PurePosixPath(info.name).as_posix()
            if name in left and info.isreg() and not _member_problem(info):
                left.discard(name)
                inner: Any = tar.extractfile(info)
                member = by_name[name]
                yield member, (_Guarded(inner, member.codec, max_member_bytes) if member.codec else _Tarred(inner))


class _Tarred(io.RawIOBase):
    """A member met while streaming; the archive's own end inside it is a truncation."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._inner.read(size)
        except TruncatedError:
            raise
        except _TAR_ERRORS as error:
            raise TruncatedError(str(error) or type(error).__name__) from error
