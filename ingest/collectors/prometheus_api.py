"""Questions to a Prometheus server over HTTP: every wait has an end, and every fault is one clear line.

Also for what speaks the same API (Thanos, Mimir, VictoriaMetrics). No redirection is followed, so that a token goes
nowhere but where it is meant for; certificates are verified; no message has a token in it.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn
from urllib.parse import urlencode, urlsplit

from ingest.errors import JobwattError

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 60.0
"""How long one answer may take as a whole, however slowly it trickles in."""

TRIES: Final = 3
MAX_ANSWER_BYTES: Final = 32 * 1024**2
_PAUSE_S = 0.5
_PIECE_BYTES = 64 * 1024
_TOO_MANY_REQUESTS = 429
_SHOWN_CHARACTERS = 200


class PrometheusError(JobwattError):
    """A Prometheus server does not answer, refuses, or answers something else than it should."""


class TooMuchError(PrometheusError):
    """The answer has more samples than the server or jobwatt takes at once; a shorter span may do."""

    reason = "too_much"


class _PassingError(Exception):
    """What may be over at the next try: a sentence, and its code."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to show who is asking: a bearer token, or a name with a password; '' for nobody."""

    token: str = field(default="", repr=False)
    user: str = ""
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Refuse what could not stand in a header."""
        if any(not text.isprintable() for text in (self.token, self.user, self.password)):
            raise ValueError("a token, name or password has a line break or control character in it; give one line")

    def headers(self) -> dict[str, str]:
        """Return the header to send."""
        if self.token:
            return {"Authorization": f"Bearer {self.token}"}
        if self.user:
            pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}

    def hide(self, text: str) -> str:
        """Return a text of the server without what is secret, short and on one line."""
        for secret in (self.token, self.password):
            text = text.replace(secret, "***") if secret else text
        text = " ".join(text.split())
        return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


NOBODY: Final = Access()


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and (epoch seconds, value) as the server writes them."""

    labels: Mapping[str, str]
    samples: list[tuple[float, str]]


class PrometheusApi:
    """A server's query API.

    Raises
    ------
    ValueError
        The URL is not one of http or https, or holds a password.
    """

    def __init__(
        self,
        url: str,
        access: Access = NOBODY,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        tries: int = TRIES,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("the URL of a server is due, as in http://prometheus:9090")
        if parts.username or parts.password:
            raise ValueError("a name or password in the URL is seen by others; give --user and --password-file")
        self._is_tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._is_tls else 80)
        self._path = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc}{self._path}"
        self.warnings: list[str] = []
        self._access, self._timeout_s, self._tries, self._sleep = access, timeout_s, tries, sleep

    @property
    def source(self) -> str:
        """The server's name as it can stand in a file name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self._host}-{self._port}{self._path}").strip("-.")

    @property
    def is_open_to_see(self) -> bool:
        """Whether a token or password goes unencrypted over a network."""
        return bool(self._access.headers()) and not self._is_tls and self._host not in ("127.0.0.1", "::1", "localhost")

    def query_range(self, query: str, start_ms: int, end_ms: int, step_ms: int) -> list[Series]:
        """Return the series of a range query.

        Raises
        ------
        TooMuchError
            A shorter span may do.
        PrometheusError
            With nothing more to be tried.
        """
        times = {"start": _seconds(start_ms), "end": _seconds(end_ms), "step": _seconds(step_ms)}
        return self._ask("query_range", query, times, "matrix")

    def query(self, query: str, at_ms: int) -> list[Series]:
        """Return the series of an instant query, one sample each; raises as `query_range`."""
        return self._ask("query", query, {"time": _seconds(at_ms)}, "vector")

    def _ask(self, what: str, query: str, times: Mapping[str, str], expected: str) -> list[Series]:
        wanted = urlencode({"query": query, **times, "timeout": f"{self._timeout_s:g}s"})
        answer = self._try(f"{self._path}/api/v1/{what}?{wanted}")
        try:
            warnings = [self._access.hide(str(warning)) for warning in answer.get("warnings") or ()]
            data = answer["data"]
            if answer["status"] != "success" or data["resultType"] != expected:
                raise ValueError(expected)
            series = [
                Series(
                    _labels(found["metric"]), _samples(found["values"] if expected == "matrix" else [found["value"]])
                )
                for found in data["result"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            shown = self._access.hide(json.dumps(answer))
            self._fail(f"answered JSON that is no {expected} of a Prometheus: {shown}")
        self.warnings += [warning for warning in dict.fromkeys(warnings) if warning not in self.warnings]
        return series

    def _try(self, target: str) -> dict[str, Any]:
        for attempt in range(1, self._tries + 1):
            try:
                return self._once(target)
            except _PassingError as error:
                if attempt == self._tries:
                    said, code = error.args
                    advice = "try again when the server and the network are well"
                    self._fail(f"{said}; tried {attempt} times; {advice}", code)
                self._sleep(_PAUSE_S * 2 ** (attempt - 1))
        raise ValueError(f"tries is {self._tries}; give 1 or more")

    def _once(self, target: str) -> dict[str, Any]:
        """Return one answer's JSON, or raise why there is none."""
        if self._is_tls:
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        watch: _Watch | None = None
        try:
            connection.connect()
            connection.sock.settimeout(self._timeout_s)
            watch = _Watch(connection.sock, self._timeout_s)
            connection.request("GET", target, headers={"Accept": "application/json", **self._access.headers()})
            with connection.getresponse() as response:
                body = self._read(response)
                is_cut = bool(response.length)
        except ssl.SSLCertVerificationError as error:
            self._fail(
                f"its certificate is not trusted ({error.verify_message}); set SSL_CERT_FILE to your site's authority",
                "no_trust",
            )
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) or (watch is not None and watch.is_over):
                wait_s = self._timeout_s if watch is not None else CONNECT_TIMEOUT_S
                raise _PassingError(f"no whole answer within {wait_s:g} s", "timeout") from error
            raise _PassingError(_reason(error), "no_answer") from error
        finally:
            if watch is not None:
                watch.cancel()
            connection.close()
        if watch.is_over:
            raise _PassingError(f"no whole answer within {self._timeout_s:g} s", "timeout")
        return self._judge(response, body, is_cut)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        pieces, size = [], 0
        while piece := response.read1(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise TooMuchError(
                    f"{self.url}: an answer of over {MAX_ANSWER_BYTES // 1024**2} MiB; narrow it by --match"
                )
        return b"".join(pieces)

    def _judge(self, response: http.client.HTTPResponse, body: bytes, is_cut: bool) -> dict[str, Any]:
        """Return the JSON of a good answer, or raise what the server said instead."""
        status = response.status
        kind = (response.headers.get_content_type() if response.headers["Content-Type"] else "").lower()
        told = self._told(body) if kind == "application/json" else ""
        if 300 <= status < 400:
            where = urlsplit(response.headers["Location"] or "")
            self._fail(f"redirects ({status}) to {self._access.hide(where._replace(query='').geturl())}; give that URL")
        if status == _TOO_MANY_REQUESTS or status >= 500:
            raise _PassingError(f"answered {status} {response.reason}{told}", "server_error")
        if status in (401, 403):
            self._fail(
                f"refused ({status} {response.reason}{told}); give --token-file, or --user and --password-file",
                "no_permission",
            )
        if status == 422 or (status == 400 and "resolution" in told):
            raise TooMuchError(f"{self.url}: answered {status}{told}; narrow it by --match, or a longer --step")
        if status != 200:
            self._fail(f"answered {status} {response.reason}{told}; is that the root of a Prometheus?")
        if kind != "application/json":
            self._fail(f"answered {kind or 'something without a type'} where JSON is due; is that a Prometheus?")
        try:
            answer = None if is_cut else json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if answer is None:
            raise _PassingError(f"sent JSON that is not whole ({len(body):,} bytes)", "bad_answer")
        if isinstance(answer, dict) and answer.get("status") == "error":
            self._fail(f"says error{told}")
        return answer if isinstance(answer, dict) else {"answer": answer}

    def _told(self, body: bytes) -> str:
        """Return what the server said of an error, as the end of a sentence."""
        try:
            text = str(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        return f": {self._access.hide(text)}"

    def _fail(self, what: str, code: str = "bad_answer") -> NoReturn:
        raise PrometheusError(f"{self.url}: {what}", reason=code)


class _Watch:
    """Ends a connection that goes on for too long."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.is_over = False
        self._sock = sock
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.is_over = True
        try:
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # below TLS, which another thread is using
        except OSError:
            return

    def cancel(self) -> None:
        """Let it live."""
        self._timer.cancel()


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"its name is not known ({error.strerror})"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError):
        return "closed the connection without an answer"
    if isinstance(error, OSError):
        return f"cannot be reached ({error.strerror or error})"
    return f"does not speak HTTP ({type(error).__name__})"


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.3f}"


def _labels(labels: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in labels.items()}


def _samples(pairs: Iterable[Any]) -> list[tuple[float, str]]:
    """Return the samples of one series.

    Raises
    ------
    ValueError, TypeError
        They are none.
    """
    samples = [(float(time_s), str(value)) for time_s, value in pairs]
    for _, value in samples:
        float(value)
    return samples
