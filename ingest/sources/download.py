"""One file from a server: written under a ``.part`` name block by block, so that an interruption costs one block.

Each block is made durable before the next is asked for; the file takes its name only when it is whole and its checksum
is right. What a folder's files were is written in its `SUMS_NAME`.
"""

from __future__ import annotations

import fcntl
import functools
import glob
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from ingest.disk import sync_folder, write_whole
from ingest.errors import SourceError
from ingest.units import BYTES_PER_MIB

T = TypeVar("T")

SUMS_NAME = "SHA256SUMS"
"""The file beside a fetched set that says what each file's SHA-256 was; ``sha256sum -c`` reads it."""

BLOCK_BYTES = 8 * BYTES_PER_MIB

ATTEMPTS = 4
"""How often one block is asked for before the fetch gives up; it can be resumed later all the same."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a set: its path below the set's url, where it is, what the server says of it, what it must be."""

    path: str
    url: str
    size_bytes: int | None
    version: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """One file that is here now: fetched, resumed or unchanged. ``fetched_bytes`` is what came over the network."""

    path: str
    size_bytes: int
    fetched_bytes: int
    sha256: str
    state: str


@dataclass(frozen=True, slots=True)
class Network:
    """A file system somewhere else, the errors it may raise, and how patiently it is asked for how much."""

    system: Any
    errors: tuple[type[Exception], ...]
    block_bytes: int
    wait_s: float


def open_network(url: str, storage_options: Mapping[str, Any], block_bytes: int, wait_s: float) -> Network:
    """Return the file system that serves ``url``: S3 without an account, or HTTP."""
    import fsspec

    if url.startswith("s3://"):
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]  # has no types

        system = fsspec.filesystem("s3", anon=True, skip_instance_cache=True, **storage_options)
        return Network(system, (OSError, BotoCoreError), block_bytes, wait_s)
    from aiohttp import ClientError

    # compressed on the way, a range would be one of other bytes
    system = fsspec.filesystem(
        "http", headers={"Accept-Encoding": "identity"}, skip_instance_cache=True, **storage_options
    )
    return Network(system, (OSError, ClientError), block_bytes, wait_s)


def fetch_file(
    network: Network, remote: RemoteFile, folder: Path, tell: Callable[[int], None], recorded_sha256: str | None = None
) -> FetchedFile:
    """Fetch one file below ``folder``, go on with it where it was interrupted, or leave it alone if it is here.

    It is here if it has the size that the server says and the SHA-256 that it must have: the catalogue's, else the one
    ``recorded`` when it was first fetched. ``tell`` is called with the bytes of it that are here.

    Raises
    ------
    SourceError
        The server fails `ATTEMPTS` times in a row, the checksum is wrong, or another fetch writes this file.
    """
    target = folder / remote.path
    expected = remote.sha256 or recorded_sha256
    if target.is_file() and expected is not None and remote.size_bytes in (None, target.stat().st_size):
        digest = _digest(target)
        if digest == expected:
            tell(target.stat().st_size)
            return FetchedFile(remote.path, target.stat().st_size, 0, digest, "unchanged")
    target.parent.mkdir(parents=True, exist_ok=True)
    version = hashlib.sha256(f"{remote.url}\0{remote.size_bytes}\0{remote.version}".encode()).hexdigest()[:8]
    part = target.with_name(f".{target.name}.{version}.part")
    for stale in target.parent.glob(f".{glob.escape(target.name)}.????????.part"):
        if stale != part:
            stale.unlink()  # begun from another version of the file
    with _locked(part) as file:
        fetched_bytes = _download(network, remote, file, tell)
        size_bytes = file.tell()
        digest = _digest(part)
        if digest != (expected or digest):
            part.unlink()
            raise SourceError(_differs(remote, digest, recorded_sha256))
        part.replace(target)
        sync_folder(target.parent)
    return FetchedFile(
        remote.path, size_bytes, fetched_bytes, digest, "fetched" if fetched_bytes == size_bytes else "resumed"
    )


def _differs(remote: RemoteFile, digest: str, recorded_sha256: str | None) -> str:
    """Return what to say of a file that has another checksum than it must have."""
    if remote.sha256 is not None:
        return (
            f"{remote.url} has SHA-256 {digest}, but the catalogue expects {remote.sha256}; it was not kept. "
            "Fetch it again; if it stays so, what is published has changed"
        )
    return (
        f"{remote.url} has SHA-256 {digest}, but {recorded_sha256} was recorded when it was first fetched; it was not "
        f"kept. Fetch it again; if it stays so, what is published has changed: fetch it into another folder with --to, "
        f"or take its line out of {SUMS_NAME}"
    )


def _download(network: Network, remote: RemoteFile, file: IO[bytes], tell: Callable[[int], None]) -> int:
    """Append what is missing to ``file``; return the bytes that came over the network."""
    had_bytes = file.seek(0, os.SEEK_END)
    if remote.size_bytes is not None and had_bytes <= remote.size_bytes:
        try:
            return _append(file, _ranges(network, remote, had_bytes, remote.size_bytes), tell)
        except _NoRangesError:
            pass
    file.seek(0)
    file.truncate()
    came_bytes = _append(file, _stream(network, remote), tell)
    if remote.size_bytes not in (None, came_bytes):
        raise SourceError(f"{remote.url} ended after {came_bytes} of {remote.size_bytes} bytes; fetch it again")
    return came_bytes


class _NoRangesError(Exception):
    """The server sends files from their beginning only."""


def _append(file: IO[bytes], blocks: Iterator[bytes], tell: Callable[[int], None]) -> int:
    came_bytes = 0
    for block in blocks:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        came_bytes += len(block)
        tell(file.tell())
    return came_bytes


def _ranges(network: Network, remote: RemoteFile, offset: int, size_bytes: int) -> Iterator[bytes]:
    """Yield the blocks from ``offset`` on, asking for each by its range, again and again while the network fails."""
    if offset == size_bytes:
        return
    source = _patiently(
        lambda: network.system.open(remote.url, "rb", block_size=network.block_bytes, cache_type="none"),
        network,
        f"{remote.url} broke off at byte {offset} of {size_bytes}",
    )
    with source:
        while offset < size_bytes:
            block = _patiently(
                functools.partial(_read_range, source, offset, min(network.block_bytes, size_bytes - offset)),
                network,
                f"{remote.url} broke off at byte {offset} of {size_bytes}",
            )
            offset += len(block)
            yield block


def _read_range(source: Any, offset: int, length: int) -> bytes:
    try:
        source.seek(offset)
        block: bytes = source.read(length)
    except ValueError as error:  # how fsspec says that a server does not know ranges
        raise _NoRangesError from error
    if not block:
        raise ConnectionError("nothing came")
    return block


def _stream(network: Network, remote: RemoteFile) -> Iterator[bytes]:
    """Yield the blocks of the whole file in one stream, which cannot be resumed."""
    try:
        with network.system.open(remote.url, "rb", block_size=0) as source:
            while block := source.read(network.block_bytes):
                yield block
    except network.errors as error:
        raise SourceError(f"{remote.url} broke off ({reason(error)}), and cannot be resumed; fetch it again") from error


def _patiently(ask: Callable[[], T], network: Network, what_failed: str) -> T:
    """Return what ``ask`` returns, asking up to `ATTEMPTS` times with growing pauses."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except (FileNotFoundError, PermissionError) as error:
            raise SourceError(f"{what_failed} ({reason(error)}); it is not public, or has moved") from error
        except network.errors as error:
            failure = reason(error)
            if attempt < ATTEMPTS - 1:
                time.sleep(network.wait_s * 2**attempt)
    raise SourceError(f"{what_failed} ({failure}); what is here is kept: the same command goes on from there")


def reason(error: Exception) -> str:
    """Return what an error says in one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


# -- the folder here ---------------------------------------------------------------------------------------------------


def read_sums(folder: Path) -> dict[str, str]:
    """Return path to SHA-256 as the folder's `SUMS_NAME` has it; nothing where there is none."""
    try:
        lines = (folder / SUMS_NAME).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines) if path}


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SourceError(f"{part} is being written by another fetch; wait for it, or stop it") from error
        yield file


def record_sum(folder: Path, path: str, digest: str, sums: dict[str, str]) -> None:
    """Write one checksum into `SUMS_NAME` and into ``sums``, which is what `read_sums` gave.

    One that is there already stays, unless the catalogue has come to know better.
    """
    if sums.get(path) == digest:
        return
    is_first = path not in sums
    sums[path] = digest
    if is_first:
        with (folder / SUMS_NAME).open("a", encoding="utf-8") as file:
            file.write(f"{digest}  {path}\n")
    else:
        write_whole(folder / SUMS_NAME, "".join(f"{value}  {key}\n" for key, value in sums.items()).encode())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
