"""Files behind a URL, through fsspec: every wait has an end, and every fault of the network is one clear error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, TypeVar, cast

from ingest.errors import JobwattError

R = TypeVar("R")

CONNECT_TIMEOUT_S: Final = 15.0
READ_TIMEOUT_S: Final = 30.0
"""How long a connection may say nothing; a transfer as a whole may take as long as it takes."""

_S3_TRIES: Final = 5


class NetworkError(JobwattError):
    """A server cannot be reached, or does not give what it should; nothing is known to be wrong with the data."""


def is_url(source: str) -> bool:
    """Return whether ``source`` is a URL (``s3://…``) and not a local path."""
    return "://" in source


def storage_options(url: str, anonymous: bool) -> dict[str, Any]:
    """Return fsspec's options for a URL; ``anonymous`` is for S3."""
    if url.startswith(("s3://", "s3a://")):
        waits = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        return {"anon": anonymous, "config_kwargs": {**waits, "retries": {"max_attempts": 0}}}
    if url.startswith(("http://", "https://")):
        import aiohttp

        waits_of_http = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        return {"client_kwargs": {"timeout": waits_of_http}}
    return {}


def _file_system(url: str, anonymous: bool) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url, **storage_options(url, anonymous))
    if hasattr(fs, "retries"):  # s3fs waits a little longer before each further one
        fs.retries = _S3_TRIES
    return fs, path


def find_files(source: str, anonymous: bool) -> list[tuple[str, str, int]]:
    """Return (name below the source, URL, size or -1) of every file at ``source`` or below it, sorted by name.

    Raises
    ------
    NetworkError
        If it cannot be listed.
    """

    def find() -> list[tuple[str, str, int]]:
        fs, root = _file_system(source, anonymous)
        fs.invalidate_cache()  # of an earlier listing in this process
        above = root.rstrip("/") + "/"
        files = [(path, info) for path, info in fs.find(root, detail=True).items() if info.get("type") != "directory"]
        return sorted(
            (
                path.removeprefix(above) if path.startswith(above) else path.rsplit("/", 1)[-1],
                fs.unstrip_protocol(path),
                int(info.get("size") or -1),
            )
            for path, info in files
        )

    try:
        return _ask(source, find)
    except OSError as error:
        raise NetworkError(f"{source}: {error.strerror}; check the URL, or try --anonymous") from error
    except ValueError as error:
        raise NetworkError(f"{source}: {error}; give s3://bucket/prefix, or an archive behind https://") from error


@contextmanager
def open_url(url: str, anonymous: bool) -> Iterator[IO[bytes]]:
    """Open a file behind a URL for reading bytes.

    Raises
    ------
    FileNotFoundError, PermissionError
        With the URL as file name.
    NetworkError
        For any other fault, while opening or reading.
    """

    def start() -> IO[bytes]:
        fs, path = _file_system(url, anonymous)
        opened: IO[bytes] = fs.open(path, "rb")
        return opened

    try:
        opened = _ask(url, start)
    except ValueError as error:
        raise NetworkError(f"{url}: {error}; give s3://bucket/prefix, or an archive behind https://") from error
    try:
        yield cast("IO[bytes]", _Remote(opened, url))
    finally:
        opened.close()


class _Remote:
    """A remote file whose faults are told by its URL."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        self._file = file
        self._url = url

    def read(self, size: int = -1, /) -> bytes:
        return self._part(lambda: self._file.read(size))

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._part(lambda: self._file.seek(offset, whence))

    def _part(self, question: Callable[[], R]) -> R:
        try:
            return _ask(self._url, question)
        except ValueError as error:
            raise NetworkError(
                f"{self._url}: its server gives no parts of a file, which an uncompressed archive needs; fetch it "
                "first, or pack it as .tar.zst"
            ) from error


def _ask(url: str, question: Callable[[], R]) -> R:
    """Return the answer of a server, or raise what became of it."""
    import aiohttp
    from botocore.exceptions import (  # type: ignore[import-untyped]  # it has no types
        BotoCoreError,
        ClientError,
        NoCredentialsError,
    )

    try:
        return question()
    except FileNotFoundError as error:
        if isinstance(error.__cause__, aiohttp.ClientConnectionError):  # fsspec makes the one out of the other
            raise NetworkError(f"{url}: {_reason(error.__cause__)}; check the URL and the network") from error
        raise FileNotFoundError(errno.ENOENT, "not found", url) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, f"access denied ({_reason(error)})", url) from error
    except NoCredentialsError as error:
        raise NetworkError(
            f"{url}: there is no account for S3 on this machine; set one up, or try --anonymous"
        ) from error
    except (OSError, ImportError, aiohttp.ClientError, BotoCoreError, ClientError) as error:
        raise NetworkError(f"{url}: {_reason(error)}; check the URL and the network, and try again") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
