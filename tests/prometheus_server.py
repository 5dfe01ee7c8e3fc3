"""A real Prometheus on 127.0.0.1, and small exporters for it to scrape whose every value is known."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

READY_S = 30.0
"""How long a server may take until the first samples are there: it takes up its targets after 5 s."""


def find_prometheus() -> str | None:
    """Return where the server's program is, or None."""
    return shutil.which("prometheus")


@dataclass(slots=True, eq=False)
class Exporter:
    """Serves metrics at ``port``: ``tell`` says which at its scrape of that number (from 0), None to let it fail."""

    tell: Callable[[int], Sequence[Metric] | None]
    port: int = 0
    scrapes: list[float] = field(default_factory=list)
    """When each scrape was answered, in epoch s."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        yield from self.tell(len(self.scrapes)) or ()


@contextmanager
def exporter(tell: Callable[[int], Sequence[Metric] | None]) -> Iterator[Exporter]:
    """Serve one exporter until the end of the block."""
    state = Exporter(tell)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(state)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output clean."""

        def do_GET(self) -> None:
            is_well = state.tell(len(state.scrapes)) is not None
            body = generate_latest(registry) if is_well else b"broken\n"
            self.send_response(200 if is_well else 500)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            state.scrapes.append(time.time())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def metric(name: str, *samples: tuple[Mapping[str, str], float], kind: str = "gauge") -> Metric:
    """One metric, its name as it is served."""
    made = Metric(name.removesuffix("_total") if kind == "counter" else name, "A test's.", kind)
    for labels, value in samples:
        made.add_sample(name, dict(labels), value)
    return made


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, int]) -> Iterator[str]:
    """Run a server that scrapes ``targets`` (job name to port) every second, and give its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = [{"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{at}"]}]} for name, at in targets.items()]
    config = folder / "prometheus.json"  # JSON is YAML
    config.write_text(json.dumps({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}))
    arguments = [
        f"--config.file={config}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(10)


def instant(url: str, query: str) -> float:
    """Return the one value of an instant query as the server tells it, 0 where it has none; asked without jobwatt."""
    with urlopen(f"{url}/api/v1/query?{urlencode({'query': query})}", timeout=10) as answer:
        result = json.load(answer)["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0


def wait_for(what: Callable[[], bool], within_s: float = READY_S) -> None:
    """Wait until something is so.

    Raises
    ------
    TimeoutError
        It was not, in that time.
    """
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if what():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"not so within {within_s} s")
