"""Files behind a URL, through fsspec: every wait has an end, and every fault of the network is one clear error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, TypeVar

from ingest.errors import SourceError

R = TypeVar("R")

CONNECT_TIMEOUT_S: Final = 15.0
READ_TIMEOUT_S: Final = 60.0
"""How long a connection may say nothing; a transfer as a whole may take as long as it takes."""

_RETRIES: Final = 2


def is_url(source: str) -> bool:
    """Return whether ``source`` is a URL (``s3://…``) and not a local path."""
    return "://" in source


def storage_options(url: str, anonymous: bool) -> dict[str, Any]:
    """Return fsspec's options for a URL; ``anonymous`` is for S3."""
    if url.startswith(("s3://", "s3a://")):
        waits = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        return {"anon": anonymous, "config_kwargs": {**waits, "retries": {"max_attempts": _RETRIES}}}
    if url.startswith(("http://", "https://")):
        import aiohttp

        waits_of_http = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        return {"client_kwargs": {"timeout": waits_of_http}}
    return {}


def find_files(source: str, anonymous: bool) -> tuple[str, list[tuple[str, str, int]]]:
    """Return the path of ``source`` on its server, and (path, URL, size or -1) of every file there or below, by path.

    Raises
    ------
    SourceError
        If it cannot be listed.
    """
    import fsspec

    def find() -> tuple[str, list[tuple[str, str, int]]]:
        fs, root = fsspec.core.url_to_fs(source, **storage_options(source, anonymous))
        found = sorted(fs.find(root, detail=True).items())
        files = [(path, info) for path, info in found if info.get("type") != "directory"]
        return root, [(path, fs.unstrip_protocol(path), int(info.get("size") or -1)) for path, info in files]

    try:
        return _ask(source, find)
    except OSError as error:
        raise SourceError(f"{source}: {error.strerror}; check the URL, or try --anonymous") from error


@contextmanager
def open_url(url: str, anonymous: bool) -> Iterator[IO[bytes]]:
    """Open a file behind a URL for reading bytes.

    Raises
    ------
    FileNotFoundError, PermissionError
        With the URL as file name.
    SourceError
        For any other fault, while opening or reading.
    """
    import fsspec

    opened = _ask(url, lambda: fsspec.open(url, "rb", **storage_options(url, anonymous)).open())
    try:
        yield _Remote(opened, url)  # type: ignore[misc]
    finally:
        opened.close()


class _Remote:
    """A remote file whose faults are told by its URL."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        self._file = file
        self._url = url

    def read(self, size: int = -1, /) -> bytes:
        return _ask(self._url, lambda: self._file.read(size))

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return self._file.seek(offset, whence)
        except ValueError as error:
            raise SourceError(
                f"{self._url}: its server gives no parts of a file, which an uncompressed archive needs; fetch it first, "
                "or pack it as .tar.zst"
            ) from error


def _ask(url: str, question: Callable[[], R]) -> R:
    """Return the answer of a server, or raise what became of it."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        return question()
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "not found", url) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, f"access denied ({_reason(error)})", url) from error
    except NoCredentialsError as error:
        raise PermissionError(errno.EACCES, "no account for S3 is set up here (or try --anonymous)", url) from error
    except aiohttp.ClientPayloadError as error:
        raise SourceError(f"{url}: the connection broke off inside the file; try again") from error
    except (OSError, ValueError, ImportError, aiohttp.ClientError, BotoCoreError, ClientError) as error:
        raise SourceError(f"{url}: cannot be read ({_reason(error)}); check the URL and the network") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
