"""Where bytes come from: a folder, a tar (plain, gzip, zstd), or a URL, read member by member and never unpacked.

Nothing here follows a link, leaves the archive's root, or inflates a member without an end.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Self, cast

from ingest.errors import SourceError
from ingest.sources.inflate import ByteStream, InflatedStream, TooLargeError, TruncatedError
from ingest.sources.remote import find_files, is_url, open_url
from ingest.sources.spool_files import SPOOL_FILE, is_passing

DEFAULT_MAX_MEMBER_BYTES: Final = 256 * 1024**3
"""A member may inflate to this much (the largest public file has 42 GB)."""

_TAR_SUFFIXES = {".tar": "", ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tzst": "zstd"}
_FILE_CODECS = {".gz": "gzip", ".zst": "zstd"}
_TAR_ERRORS = (
    *(tarfile.TarError, TruncatedError, TooLargeError, EOFError),
    *(ValueError, OverflowError),  # numbers that are none, or too great
    RecursionError,  # one extended header after another
)
"""What tarfile raises for a damaged archive."""

_NAMING_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_MAX_NAME_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: its name below the root, and where its bytes are.

    ``offset`` is None for a file of its own; a number is where it starts in an uncompressed tar; -1 means that it can
    only be met by streaming through the archive. ``size`` is the stored size in bytes, -1 where unknown.
    ``archive_name`` is the name with the folders above the root, where it differs.
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
        return next((codec for suffix, codec in _FILE_CODECS.items() if self.name.endswith(suffix)), "")

    @property
    def plain_name(self) -> str:
        """The name without the ending of a compressed file."""
        return self.name.removesuffix(".gz").removesuffix(".zst") if self.codec else self.name


@dataclass(frozen=True, slots=True)
class Listing:
    """What an archive holds: its members by name, and those refused, with reason code and detail."""

    members: tuple[Member, ...]
    refused: tuple[tuple[str, str, str], ...]


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
    return _without_odd(listing, max_member_bytes)


def _without_odd(listing: Listing, max_member_bytes: int) -> Listing:
    """Return the listing with members of impossible names or sizes refused."""
    refused = [(shown_name(name), reason, detail) for name, reason, detail in listing.refused]
    kept = []
    for member in listing.members:
        if shown_name(member.name) != member.name:
            refused.append((shown_name(member.name), "bad_file_name", "control characters, or no UTF-8"))
        elif member.size > max_member_bytes:
            refused.append((member.name, "too_large", f"{member.size} bytes, the limit is {max_member_bytes}"))
        else:
            kept.append(member)
    return Listing(tuple(kept), tuple(refused))


def shown_name(name: str) -> str:
    """Return a file's name as it can be stored: control characters, and bytes that are not UTF-8, escaped.

    >>> shown_name("gpu/5-n.csv"), shown_name("a\\nb"), shown_name("a\\udcff")
    ('gpu/5-n.csv', 'a\\\\x0ab', 'a\\\\xff')
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode()) for c in text)


def _list_path(path: Path) -> Listing:
    if path.is_file():
        return Listing((Member(path.name, str(path), path.stat().st_size),), ())
    if not path.is_dir():
        raise SourceError(f"{path}: no such file or folder; give a folder, a .tar, .tar.gz, .tar.zst or a URL")
    members, refused = [], []

    def refuse(error: OSError) -> None:
        below = Path(error.filename or path).relative_to(path).as_posix()
        refused.append((below, "unreadable", error.strerror or type(error).__name__))

    is_spool = (path / SPOOL_FILE).is_file()
    for folder, subfolders, files in os.walk(path, onerror=refuse):
        subfolders.sort()
        if is_spool:  # what collectors rename, or remove, in this very moment
            files = [name for name in files if not is_passing(name)]  # noqa: PLW2901
        links = [Path(folder) / name for name in subfolders if (Path(folder) / name).is_symlink()]
        refused += [(link.relative_to(path).as_posix(), "unsafe_member", "a link") for link in links]
        for name in sorted(files):
            file = Path(folder) / name
            relative = file.relative_to(path).as_posix()
            if file.is_symlink() or not file.is_file():
                refused.append((relative, "unsafe_member", "a link or a device"))
            else:
                members.append(Member(relative, str(file), file.stat().st_size))
    return Listing(tuple(members), tuple(refused))


def _list_url(source: str, anonymous: bool) -> Listing:
    members = tuple(Member(name, url, size) for name, url, size in find_files(source, anonymous))
    if not members:
        raise SourceError(f"{source}: nothing there; check the bucket and the prefix")
    return Listing(members, ())


def _list_tar(source: str, codec: str, anonymous: bool, max_member_bytes: int) -> Listing:
    members: dict[str, Member] = {}
    refused: list[tuple[str, str, str]] = []
    with open_location(source, anonymous) as file:
        tar = _TarReader(file, codec, source)
        while (info := tar.next()) is not None:
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
        if tar.problem is not None:
            reason = "too_large" if isinstance(tar.problem, TooLargeError) else "truncated"
            refused.append((PurePosixPath(source).name, reason, str(tar.problem)))
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
        with open_url(location, anonymous) as file:
            yield file
    else:
        with Path(location).open("rb") as file:
            yield file


class _Header(tarfile.TarInfo):
    """A tar header that tells a damaged archive from one that has ended, and that does not ask for much memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end mark ({error})") from error
        if header.size < 0 or (header.type in _NAMING_TYPES and header.size > _MAX_NAME_BYTES):
            raise tarfile.ReadError("a header of an impossible size")
        return header

    def _block(self, count: int) -> int:
        """Return a member's size in whole blocks; an extended header can say anything, even less than nothing."""
        if count < 0:
            raise tarfile.ReadError("a member of an impossible size")
        return -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


class _TarReader:
    """The members of a tar, one after another; where it is damaged it ends, and ``problem`` tells."""

    def __init__(self, file: IO[bytes], codec: str, source: str) -> None:
        self.problem: Exception | None = None
        self._stream = InflatedStream(file, codec) if codec else None
        self._reached = 0
        self._end = 0
        self._length = 0 if codec else file.seek(0, os.SEEK_END)
        try:
            self._tar = self._open(file)
        except _TAR_ERRORS as error:
            problem = self._stream.problem if self._stream is not None else None
            raise SourceError(f"{source}: cannot be read as a tar archive ({problem or error})") from error

    def _open(self, file: IO[bytes]) -> tarfile.TarFile:
        if self._stream is None:
            file.seek(0)
            return tarfile.open(fileobj=file, mode="r:", tarinfo=_Header)
        stream: Any = _Quiet(self._stream)
        return tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header)

    def next(self) -> tarfile.TarInfo | None:
        """Return the next member, None at the end."""
        try:
            if self._end > self._length:
                raise TruncatedError("the file ends inside a member")
            info = self._tar.next()
            if info is not None and (info.size < 0 or self._tar.offset <= self._reached):
                raise tarfile.ReadError("a member of an impossible size")
        except _TAR_ERRORS as error:
            self.problem = (self._stream.problem if self._stream is not None else None) or error
            return None
        self._tar.members = []  # type: ignore[attr-defined]
        self._reached = self._tar.offset
        if info is not None and self._stream is None:
            self._end = info.offset_data + (info.size if info.isreg() else 0)
        elif info is None and self._stream is not None:
            self._drain(self._stream)
        return info

    def _drain(self, stream: InflatedStream) -> None:
        """Read what follows the end mark, at whose end a checksum may be."""
        try:
            while stream.read(1024**2):
                pass
        except SourceError as error:
            self.problem = error

    def open(self, info: tarfile.TarInfo) -> ByteStream:
        """Return the bytes of the member that was given last."""
        return _Streamed(cast("IO[bytes]", self._tar.fileobj), info.size, self._stream)


class _Quiet:
    """An inflating stream that ends where it is damaged, since tarfile would lose what it has read so far."""

    def __init__(self, stream: InflatedStream) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        return b"" if self._stream.problem is not None else self._read(size)

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except SourceError:
            return b""


class _Streamed:
    """A member of a tar that is met while streaming."""

    def __init__(self, file: IO[bytes], size: int, stream: InflatedStream | None) -> None:
        self._file = file
        self._left = size
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        if not data and self._left and size:
            problem = self._stream.problem if self._stream is not None else None
            raise problem or TruncatedError("the archive ends inside the member")
        return data


class _Slice:
    """The bytes ``[offset, offset + size)`` of an open file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        file.seek(offset)
        self._file = file
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted) if wanted else b""
        self._left -= len(data)
        if wanted and not data:
            raise TruncatedError("the archive ends inside the member")
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
        stored: ByteStream = file
        if member.offset is not None:
            stored = _Slice(file, member.offset + start, member.size - start)
        elif start:
            file.seek(start)
        yield InflatedStream(stored, member.codec, max_member_bytes) if member.codec else stored


def stream_members(
    location: str, wanted: Iterable[Member], *, anonymous: bool, max_member_bytes: int = DEFAULT_MAX_MEMBER_BYTES
) -> Iterator[tuple[Member, ByteStream]]:
    """Yield the wanted members (by their name in the archive) of a compressed tar, each with its stream.

    A stream must be read before the next member is asked for.
    """
    codec = tar_codec(location) or ""
    left = {member.archive_name or member.name: member for member in wanted}
    with open_location(location, anonymous) as file:
        tar = _TarReader(file, codec, location)
        while left and (info := tar.next()) is not None:
            name = PurePosixPath(info.name).as_posix()
            if name in left and info.isreg() and not _member_problem(info):
                member = left.pop(name)
                stored = tar.open(info)
                yield member, (InflatedStream(stored, member.codec, max_member_bytes) if member.codec else stored)
