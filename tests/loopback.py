"""Servers on 127.0.0.1 for tests of what comes over a network: S3 without an account, and HTTP that can break off.

Both serve a folder as it is at the moment of the request, and both note every request they answered.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

_BLOCK_BYTES = 64 * 1024
_S3_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came: its method, its path with the query, and the range it asked for."""

    method: str
    path: str
    byte_range: str | None


@dataclass(slots=True)
class Server:
    """A running server: where it is and what it was asked. ``drops_left`` counts connections it will still cut."""

    root: Path
    url: str
    page_size: int = 1000
    ranges: bool = True
    drop_after_bytes: int = 0
    drops_left: int = 0
    requests: list[Request] = field(default_factory=list)


@contextmanager
def s3_server(root: Path, page_size: int = 1000) -> Iterator[Server]:
    """Serve each folder of ``root`` as a bucket: listing (v2, at most ``page_size`` keys a page), heads, ranges.

    Give ``url`` as s3fs's ``endpoint_url``, with ``anon=True``.
    """
    with _serve(_S3Handler, Server(root=root, url="", page_size=page_size)) as server:
        yield server


@contextmanager
def http_server(root: Path, *, drop_after_bytes: int = 0, drops: int = 0, ranges: bool = True) -> Iterator[Server]:
    """Serve the files of ``root``, with ranges.

    Parameters
    ----------
    drops : so many answers that are longer than ``drop_after_bytes`` are cut off there, and the connection with them
    ranges : without, a range is not heeded: the whole file comes, as from a server that does not know them
    """
    state = Server(root=root, url="", ranges=ranges, drop_after_bytes=drop_after_bytes, drops_left=drops)
    with _serve(_HttpHandler, state) as server:
        yield server


@contextmanager
def _serve(handler: type[_Handler], state: Server) -> Iterator[Server]:
    bound = type(handler.__name__, (handler,), {"state": state, "lock": threading.Lock()})
    with ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server
    lock: threading.Lock

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self._note()
        self._answer(body=False)

    def do_GET(self) -> None:
        self._note()
        self._answer(body=True)

    def _note(self) -> None:
        self.state.requests.append(Request(self.command, self.path, self.headers.get("Range")))

    def _answer(self, *, body: bool) -> None:
        raise NotImplementedError

    def _file(self, path: str) -> Path | None:
        """Return the file at a path below the root, or None where there is none (or where it leads out of the root)."""
        target = (self.state.root / path.lstrip("/")).resolve()
        return target if target.is_file() and target.is_relative_to(self.state.root.resolve()) else None

    def _send(self, status: int, content: bytes, kind: str, *, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _send_file(self, path: Path, *, body: bool) -> None:
        size = path.stat().st_size
        first, last = 0, size - 1
        wanted = self.headers.get("Range") if self.state.ranges else None
        status = 200
        if wanted is not None:
            span = _span(wanted, size)
            if span is None:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first, last = span
            status = 206
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.send_header("ETag", f'"{_etag(path)}"')
        if self.state.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if body:
            self._send_bytes(path, first, last - first + 1)

    def _send_bytes(self, path: Path, offset: int, length: int) -> None:
        with self.lock:
            cut = self.state.drops_left > 0 and length > self.state.drop_after_bytes
            self.state.drops_left -= cut
        left = self.state.drop_after_bytes if cut else length
        with path.open("rb") as file:
            file.seek(offset)
            while left > 0:
                block = file.read(min(left, _BLOCK_BYTES))
                self.wfile.write(block)
                left -= len(block)
        if cut:
            self.wfile.flush()
            self.close_connection = True


class _HttpHandler(_Handler):
    def _answer(self, *, body: bool) -> None:
        path = self._file(unquote(urlsplit(self.path).path))
        if path is None:
            self._send(404, b"not found\n", "text/plain", body=body)
        else:
            self._send_file(path, body=body)


class _S3Handler(_Handler):
    def _answer(self, *, body: bool) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        bucket, _, key = path.partition("/")
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        if not bucket or not (self.state.root / bucket).is_dir():
            self._error(404, "NoSuchBucket", body=body)
        elif key:
            file = self._file(path)
            if file is None:
                self._error(404, "NoSuchKey", body=body)
            else:
                self._send_file(file, body=body)
        elif body and query.get("list-type") == "2":
            self._send(200, self._list(bucket, query).encode(), "application/xml", body=body)
        elif body:
            self._error(501, "NotImplemented", body=body)
        else:
            self._send(200, b"", "application/xml", body=body)

    def _error(self, status: int, code: str, *, body: bool) -> None:
        text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._send(status, text.encode(), "application/xml", body=body)

    def _list(self, bucket: str, query: dict[str, str]) -> str:
        """Return one page of ListObjectsV2: keys and common prefixes in order, and where the next page goes on."""
        folder = self.state.root / bucket
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, Path | None] = {}
        for path in folder.rglob("*"):
            key = path.relative_to(folder).as_posix()
            if path.is_file() and key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                entries[prefix + head + delimiter if found else key] = None if found else path
        after = query.get("continuation-token") or query.get("start-after", "")
        names = sorted(name for name in entries if name > after)
        limit = min(self.state.page_size, int(query.get("max-keys", "1000")))
        page = names[:limit]
        encode = quote if query.get("encoding-type") == "url" else escape
        body = []
        for name in page:
            path_or_none = entries[name]
            if path_or_none is None:
                body.append(f"<CommonPrefixes><Prefix>{encode(name)}</Prefix></CommonPrefixes>")
                continue
            stat = path_or_none.stat()
            body.append(
                f"<Contents><Key>{encode(name)}</Key><LastModified>{_iso(stat.st_mtime)}</LastModified>"
                f'<ETag>"{_etag(path_or_none)}"</ETag><Size>{stat.st_size}</Size>'
                f"<StorageClass>STANDARD</StorageClass></Contents>"
            )
        more = len(names) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more and page else ""
        encoding = "<EncodingType>url</EncodingType>" if encode is quote else ""
        return (
            f"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='{_S3_NAMESPACE}'>"
            f"<Name>{escape(bucket)}</Name><Prefix>{encode(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>{limit}</MaxKeys>{encoding}<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{''.join(body)}</ListBucketResult>"
        )


def _span(header: str, size: int) -> tuple[int, int] | None:
    """Return the first and the last byte that a Range header asks for, or None where it cannot be satisfied."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.group(1) == match.group(2) == "":
        return None
    if match.group(1) == "":
        first, last = max(0, size - int(match.group(2))), size - 1
    else:
        first = int(match.group(1))
        last = min(int(match.group(2)), size - 1) if match.group(2) else size - 1
    return (first, last) if first <= last else None


def _etag(path: Path) -> str:
    stat = path.stat()
    return hashlib.md5(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}".encode(), usedforsecurity=False).hexdigest()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
