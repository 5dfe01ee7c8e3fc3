"""A Prometheus that misbehaves: one clear line, an end to every wait, no token told, and what was gathered stays."""

from __future__ import annotations

import errno
import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from app.cli import DATA_PROBLEM, OK, PARTLY_DONE, USAGE, run
from ingest.collectors import prometheus, prometheus_api, snapshots
from ingest.collectors.prometheus_api import Access, PrometheusApi, PrometheusError, TooMuchError
from ingest.removal import Removal

SECRET = "s3cret-token"
HOUR_S = 1_795_400_000 // 3600 * 3600
Answer = Callable[[BaseHTTPRequestHandler], object]


def matrix(result: list[object], kind: str = "matrix") -> dict[str, object]:
    """What a server answers."""
    return {"status": "success", "data": {"resultType": kind, "result": result}}


EMPTY = matrix([])


def send(
    handler: BaseHTTPRequestHandler, body: object, status: int = 200, kind: str | None = "application/json", **more: str
) -> None:
    """Send one answer, JSON unless it is text."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    handler.send_response(status)
    if kind is not None:
        handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", more.pop("length", str(len(content))))
    for name, value in more.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def server(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve with one kind of answer; gives the URL and the list of what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output clean."""

        def do_GET(self) -> None:
            asked.append(self.path)
            try:
                answer(self)
            except OSError:
                return  # the other side had enough

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a refused handshake is no news
        if context is not None:
            http.socket = context.wrap_socket(http.socket, server_side=True)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"{'http' if context is None else 'https'}://127.0.0.1:{http.server_address[1]}", asked
        finally:
            http.shutdown()
            thread.join()


def hang(handler: BaseHTTPRequestHandler) -> None:
    """Say nothing."""
    time.sleep(3)


def trickle(handler: BaseHTTPRequestHandler) -> None:
    """Send the headers a byte at a time, never long without one."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" * 10:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def half(handler: BaseHTTPRequestHandler) -> None:
    """Promise more than is sent."""
    send(handler, '{"status":"success","data":{"resultType"', length="4000")


def half_without_length(handler: BaseHTTPRequestHandler) -> None:
    """End in the midst, with no length to tell."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.wfile.write(b'{"status":"success","data":{"resultType"')


PASSING: dict[str, tuple[Answer, str]] = {
    "5xx": (lambda h: send(h, "sorry", 502, "text/html"), "answered 502 Bad Gateway; tried 3 times"),
    "5xx with a reason": (
        lambda h: send(h, {"status": "error", "error": "query timed out"}, 503),
        "answered 503 Service Unavailable: query timed out; tried 3 times",
    ),
    "too many requests": (lambda h: send(h, "", 429), "answered 429 Too Many Requests; tried 3 times"),
    "half a body": (half, "sent JSON that is not whole (40 bytes); tried 3 times"),
    "half a body without length": (half_without_length, "sent JSON that is not whole (40 bytes); tried 3 times"),
    "no body": (lambda h: send(h, ""), "sent JSON that is not whole (0 bytes); tried 3 times"),
    "nothing": (lambda h: h.connection.close(), "closed the connection without an answer; tried 3 times"),
    "silence": (hang, "no whole answer within 0.4 s; tried 3 times"),
    "a trickle": (trickle, "no whole answer within 0.4 s; tried 3 times"),
    "another protocol": (lambda h: h.wfile.write(b"SSH-2.0-x\r\n\r\n"), "does not speak HTTP"),
}

LASTING: dict[str, tuple[Answer, str]] = {
    "a page": (lambda h: send(h, "<html>log in</html>", kind="text/html"), "answered text/html where JSON is due"),
    "no type": (lambda h: send(h, EMPTY, kind=None), "answered something without a type where JSON is due"),
    "an error": (lambda h: send(h, {"status": "error", "error": "parse\nerror"}, 200), "says error: parse error"),
    "a bad query": (lambda h: send(h, {"status": "error", "error": "bad"}, 400), "answered 400 Bad Request: bad"),
    "unauthorized": (lambda h: send(h, "", 401), "refused (401 Unauthorized); give --token-file"),
    "not found": (lambda h: send(h, "", 404), "answered 404 Not Found; is that the root of a Prometheus?"),
    "a list": (lambda h: send(h, [1]), "answered JSON that is no matrix of a Prometheus"),
    "another result": (
        lambda h: send(h, matrix([1, "2"], "scalar")),
        "answered JSON that is no matrix of a Prometheus",
    ),
    "samples that are none": (
        lambda h: send(
            h, {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": 3}]}}
        ),
        "answered JSON that is no matrix of a Prometheus",
    ),
    "a value that is no number": (
        lambda h: send(h, matrix([{"metric": {}, "values": [[1, "much"]]}])),
        "answered JSON that is no matrix of a Prometheus",
    ),
    "a redirection": (
        lambda h: send(h, "", 302, Location="http://elsewhere:1/x?token=1"),
        "redirects (302) to http://elsewhere:1/x; give that URL",
    ),
    "our token": (lambda h: send(h, {"status": "error", "error": f"bad {SECRET}!"}, 400), "400 Bad Request: bad ***!"),
}


def failure(url: str) -> str:
    """What one question to a server fails with."""
    api = PrometheusApi(url, Access(SECRET), timeout_s=0.4, sleep=lambda _: None)
    with pytest.raises(PrometheusError) as caught:
        api.query_range("up", 0, 1000, 1000)
    return str(caught.value)


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_three_times_and_then_told_in_one_line(name):
    answer, told = PASSING[name]
    with server(answer) as (url, asked):
        before = time.monotonic()
        message = failure(url)
        assert time.monotonic() - before < 3 * 0.4 + 1
    assert message.startswith(f"{url}: {told}")
    assert "\n" not in message
    assert SECRET not in message
    assert len(asked) == 3


@pytest.mark.parametrize("name", LASTING)
def test_what_will_not_pass_is_told_at_once_in_one_line(name):
    answer, told = LASTING[name]
    with server(answer) as (url, asked):
        message = failure(url)
    assert f"{url}: " in message
    assert told in message
    assert "\n" not in message
    assert SECRET not in message
    assert len(asked) == 1


def test_nobody_there_is_told_in_one_line():
    with server(hang) as (url, _):
        pass
    assert failure(url).startswith(f"{url}: cannot be reached (Connection refused); tried 3 times")
    assert "its name is not known" in failure("http://nowhere.invalid:9")


def test_a_second_try_is_enough_where_the_fault_has_passed():
    answers = iter([500, 200])
    with server(lambda h: send(h, EMPTY, next(answers))) as (url, asked):
        assert PrometheusApi(url, sleep=lambda _: None).query_range("up", 0, 1000, 1000) == []
    assert len(asked) == 2


def test_an_answer_that_never_ends_is_cut_off(monkeypatch):
    monkeypatch.setattr(prometheus_api, "MAX_ANSWER_BYTES", 1024**2)
    with server(lambda h: send(h, "[" * 4 * 1024**2)) as (url, _), pytest.raises(TooMuchError, match="over 1 MiB"):
        PrometheusApi(url).query_range("up", 0, 1000, 1000)


def test_warnings_of_the_server_are_kept_once_and_its_data_is_used():
    answer = {**EMPTY, "warnings": ["store a\nis away", "store a\nis away"]}
    with server(lambda h: send(h, answer)) as (url, _):
        api = PrometheusApi(url)
        assert api.query_range("up", 0, 1000, 1000) == api.query_range("up", 0, 1000, 1000) == []
    assert api.warnings == ["store a is away"]


@pytest.mark.parametrize(
    ("access", "header"),
    [(Access(SECRET), f"Bearer {SECRET}"), (Access("", "me", "pass word"), "Basic bWU6cGFzcyB3b3Jk"), (Access(), None)],
)
def test_who_is_asking_is_told_in_a_header_and_nowhere_else(access, header):
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        send(handler, EMPTY)

    with server(answer) as (url, asked):
        PrometheusApi(url, access).query_range("up", 0, 1000, 1000)
    assert seen == [header]
    assert SECRET not in asked[0]
    assert SECRET not in repr(access)
    assert "pass word" not in repr(access)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://me:pass@x", "http://x?token=1"])
def test_a_url_that_is_none_or_holds_a_password_is_refused(url):
    with pytest.raises(ValueError, match="URL"):
        PrometheusApi(url)


@pytest.mark.system
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_of_an_unknown_authority_is_not_trusted(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with server(lambda h: send(h, EMPTY), context) as (url, asked):
        assert "its certificate is not trusted (self-signed certificate); set SSL_CERT_FILE" in failure(url)
        assert asked == []
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SSL_CERT_FILE", str(certificate))
            assert PrometheusApi(url).query_range("up", 0, 1000, 1000) == []


# -- a whole collection ------------------------------------------------------------------------------------------------


def two_hours(handler: BaseHTTPRequestHandler, *, broken_from_s: float = float("inf"), status: int = 500) -> None:
    """Answer as a server that scraped one GPU every 60 s; from some time on, answer badly."""
    parts = urlsplit(handler.path)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    query = asked["query"]
    if parts.path.endswith("/query"):
        value = [float(asked["time"]), "60"]
        send(
            handler, {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": value}]}}
        )
        return
    start, end, step = (float(asked[name]) for name in ("start", "end", "step"))
    if start >= broken_from_s and "timestamp(" in query:
        send(handler, {"status": "error", "error": "no"}, status)
        return
    labels = {"gpu": "0", "Hostname": "n1"}
    times = [start + i * step for i in range(int((end - start) / step) + 1)]
    if query.startswith("count by"):
        labels = {"__name__": "DCGM_FI_DEV_POWER_USAGE"}
        values = [[t, "1"] for t in times]
    elif query.startswith("max(count_over_time"):
        labels, values = {}, [[t, "6"] for t in times if "[300s]" in query]
    elif query.startswith("timestamp"):
        values = [[t, str(t // 60 * 60)] for t in times]
    else:
        labels["__name__"] = "DCGM_FI_DEV_POWER_USAGE"
        values = [[t, "100"] for t in times]
    send(handler, matrix([{"metric": labels, "values": values}] if values else []))


def hours(spool: Path) -> dict[str, int]:
    """Rows of each snapshot of a spool, by hour."""
    return {
        path.stem.rpartition("-")[2]: len(path.read_text().splitlines()) - 1 for path in sorted(spool.glob("gpu/*.csv"))
    }


def test_hours_before_a_fault_stay_and_the_next_collection_makes_up_for_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prometheus_api, "_PAUSE_S", 0.001)
    broken_from_s = HOUR_S + 1800.0
    with server(lambda h: two_hours(h, broken_from_s=broken_from_s)) as (url, _):
        words = ["--spool", str(tmp_path), "--start", str(HOUR_S), "--end", str(HOUR_S + 7200), "--format", "json"]
        assert run(["collect-prometheus", url, *words]) == PARTLY_DONE
        said = capsys.readouterr()
        assert said.err.startswith(f"jobwatt: {url}: answered 500 Internal Server Error: no; tried 3 times; ")
        assert said.err.count("\n") == 1
        assert json.loads(said.out)["rows"] == 60
        assert list(hours(tmp_path).values()) == [60]
        broken_from_s = float("inf")
        assert run(["collect-prometheus", url, *words]) == OK
    assert json.loads(capsys.readouterr().out)["files_changed"] == 1
    assert list(hours(tmp_path).values()) == [60, 60]


def test_a_full_disk_is_one_line_that_names_the_file_and_hours_before_it_stay(tmp_path, monkeypatch, capsys):
    really_write = snapshots.write_whole

    def write(path: Path, text: str) -> None:
        if hours(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
        really_write(path, text)

    monkeypatch.setattr(snapshots, "write_whole", write)
    with server(lambda h: two_hours(h, broken_from_s=float("inf"))) as (url, _):
        words = ["--spool", str(tmp_path), "--start", str(HOUR_S), "--end", str(HOUR_S + 7200)]
        assert run(["collect-prometheus", url, *words]) == DATA_PROBLEM
    said = capsys.readouterr().err
    assert said.startswith(f"jobwatt: {tmp_path / 'gpu'}/prometheus-")
    assert "no space left (No space left on device); " in said
    assert said.endswith(" [disk_full]\n")
    assert list(hours(tmp_path).values()) == [60]


def test_hours_that_a_follower_removed_are_neither_asked_for_nor_written_again(tmp_path):
    def starts(asked: list[str]) -> list[float]:
        queries = [parse_qs(urlsplit(path).query) for path in asked]
        return [float(query["start"][0]) for query in queries if query["query"][0].startswith("timestamp")]

    with server(two_hours) as (url, asked):
        api = PrometheusApi(url)
        prometheus.collect(api, tmp_path, HOUR_S, HOUR_S + 3 * 3600)
        assert min(starts(asked)) < HOUR_S
        first, second, _ = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("gpu/*.csv"))
        Removal(tmp_path).remove([first, second], keep_from=datetime.fromtimestamp(HOUR_S + 7200, UTC))
        asked.clear()
        again = prometheus.collect(api, tmp_path, HOUR_S, HOUR_S + 4 * 3600)
    assert (again.problem, again.files_changed, again.remarks) == ("", 1, (prometheus.REMOVED,))
    assert min(starts(asked)) > HOUR_S + 7000
    assert list(hours(tmp_path).values()) == [60, 60]


def test_a_server_that_is_down_from_the_start_is_a_data_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prometheus_api, "_PAUSE_S", 0.001)
    with server(lambda h: send(h, "", 500)) as (url, _):
        assert run(["collect-prometheus", url, "--spool", str(tmp_path / "spool")]) == DATA_PROBLEM
    assert capsys.readouterr().err.count("\n") == 1


def test_following_goes_on_after_a_fault_and_makes_up_for_it(tmp_path):
    is_broken = [False, True, False]
    rounds: list[prometheus.Collected] = []
    clock = [HOUR_S + 600.0]

    def wait(seconds: float) -> bool:
        clock[0] += 600
        return len(rounds) == 3

    with server(lambda h: two_hours(h, broken_from_s=0 if is_broken[len(rounds)] else 9e9, status=400)) as (url, _):
        follow = prometheus.follow(PrometheusApi(url), tmp_path, HOUR_S, every_s=600, wait=wait, wall=lambda: clock[0])
        for found in follow:
            rounds.append(found)  # noqa: PERF402  # the server looks at how many there are
    assert [bool(found.problem) for found in rounds] == is_broken
    assert list(hours(tmp_path).values()) == [30]


def test_more_than_the_server_takes_at_once_is_asked_for_in_halves(tmp_path):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = parse_qs(urlsplit(handler.path).query)
        span_s = float(asked.get("end", ["0"])[0]) - float(asked.get("start", ["0"])[0])
        if "timestamp(" in asked["query"][0] and span_s > 1200:
            send(handler, {"status": "error", "error": "query processing would load too many samples"}, 422)
        else:
            two_hours(handler)

    with server(answer) as (url, _):
        result = prometheus.collect(PrometheusApi(url), tmp_path, HOUR_S, HOUR_S + 3600)
    assert (result.problem, result.rows) == ("", 60)


def test_no_answer_has_more_than_ten_thousand_points_of_a_series(tmp_path):
    points: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = {name: values[-1] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        if "step" in asked:
            points.append(round((float(asked["end"]) - float(asked["start"])) / float(asked["step"])) + 1)
        two_hours(handler)

    options = prometheus.Options("dcgm", step_s=0.1)
    with server(answer) as (url, _):
        result = prometheus.collect(PrometheusApi(url), tmp_path, HOUR_S, HOUR_S + 3600, options)
    assert result.rows == 60
    assert 9_000 < max(points) <= 10_000


# -- what is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--start", "yesterday"], "give 2026-11-24T22:42:00Z"),
        (["--start", "2026-11-24T12:00:00+01:00", "--end", "2026-11-24T10:00:00Z"], "the start must come first"),
        (["--end", "inf"], "the start must come first"),
        (["--start", "nan"], "the start must come first"),
        (["--follow", "--end", "0"], "--follow has no end"),
        (["--user", "me", "--token-file", "TOKEN"], "exclude each other"),
        (["--password-file", "TOKEN"], "needs --user"),
        (["--token-file", "EMPTY"], "is empty"),
        (["--token-file", "LINES"], "line break"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_asked(tmp_path, capsys, words, told):
    contents = {"TOKEN": SECRET, "EMPTY": "\n", "LINES": f"{SECRET}\nX-Header: {SECRET}"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    with server(hang) as (url, asked):
        given = [str(tmp_path / word) if word in contents else word for word in words]
        assert run(["collect-prometheus", url, "--spool", str(tmp_path / "spool"), *given]) == USAGE
    message = capsys.readouterr().err
    assert told in message
    assert SECRET not in message
    assert asked == []


def test_a_token_over_plain_http_is_remarked_upon_except_on_this_machine():
    assert PrometheusApi("http://prometheus.example:9090", Access(SECRET)).is_open_to_see
    assert not PrometheusApi("http://127.0.0.1:9090", Access(SECRET)).is_open_to_see
    assert not PrometheusApi("https://prometheus.example", Access(SECRET)).is_open_to_see
    assert not PrometheusApi("http://prometheus.example:9090").is_open_to_see
