from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.cli import run
from ingest.pipeline import ingest
from ingest.runner import PoolRunner, SerialRunner
from ingest.sources import remote
from ingest.synthetic import make_archive
from tests.lakes import Tables, assert_same_tables, read_tables
from tests.loopback import Server, http_server, s3_server

PACKED = ("archive.tar", "archive.tar.gz", "archive.tar.zst")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to serve: a bucket that has an archive below a prefix, and the archive packed in three ways."""
    root = tmp_path_factory.mktemp("served")
    make_archive(root / "bucket" / "some" / "prefix", rng=6, n_jobs=4, seconds_per_job=8.0, cpu_only_jobs=1)
    for name in PACKED:
        make_archive(root / name, rng=6, n_jobs=4, seconds_per_job=8.0, cpu_only_jobs=1)
    return root


@pytest.fixture(scope="module")
def expected(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """What the folder itself holds."""
    lake = tmp_path_factory.mktemp("expected") / "lake"
    ingest(str(served / "bucket" / "some" / "prefix"), lake, runner=SerialRunner())
    return read_tables(lake)


@contextmanager
def s3(root: Path, monkeypatch: pytest.MonkeyPatch, page_size: int = 1000) -> Iterator[Server]:
    """Serve ``root`` as S3, and let every s3:// URL mean that."""
    with s3_server(root, page_size=page_size) as server:
        use_s3_at(server.url, monkeypatch)
        yield server


def use_s3_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every s3:// URL mean this server; forget what was read from another one."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


# -- the same as a folder ----------------------------------------------------------------------------------------------


def test_a_bucket_gives_the_same_lake_as_the_folder_and_again_changes_nothing(served, expected, tmp_path, monkeypatch):
    with s3(served, monkeypatch, page_size=5) as server:
        source = "s3://bucket/some/prefix"
        first = ingest(source, tmp_path / "lake", anonymous=True, runner=SerialRunner())
        assert sum("list-type=2" in request.path for request in server.requests) > 1  # page by page
        again = ingest(source, tmp_path / "lake", anonymous=True, runner=SerialRunner())
    assert_same_tables(read_tables(tmp_path / "lake"), expected)
    assert (again.rows_unchanged, again.rows_out, again.generation) == (first.rows_in, 0, first.generation)


def test_workers_read_a_bucket_as_one_process_does(served, expected, tmp_path, monkeypatch):
    with s3(served, monkeypatch), PoolRunner(2) as runner:
        ingest("s3://bucket/some/prefix/", tmp_path / "lake", anonymous=True, runner=runner)
    assert_same_tables(read_tables(tmp_path / "lake"), expected)


def test_a_file_that_grew_in_a_bucket_is_seen_by_the_same_process(served, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(served / "bucket" / "some" / "prefix", tmp_path / "served" / "bucket" / "a"))
    grown = next((folder / "gpu").rglob("*.csv"))
    lines = grown.read_text().splitlines(keepends=True)
    grown.write_text("".join(lines[:10]))
    with s3(tmp_path / "served", monkeypatch):
        ingest("s3://bucket/a", tmp_path / "lake", anonymous=True, runner=SerialRunner())
        grown.write_text("".join(lines))
        report = ingest("s3://bucket/a", tmp_path / "lake", anonymous=True, runner=SerialRunner())
    assert [(record.name, record.rows_out) for record in report.records if record.status == "replaced"] == [
        (grown.relative_to(folder).as_posix(), len(lines) - 1)
    ]


@pytest.mark.parametrize("name", PACKED)
def test_an_archive_behind_http_gives_the_same_lake(name, served, expected, tmp_path):
    with http_server(served) as server:
        ingest(f"{server.url}/{name}", tmp_path / "lake", runner=SerialRunner())
    assert_same_tables(read_tables(tmp_path / "lake"), expected)


@pytest.mark.parametrize("name", PACKED[1:])
def test_a_compressed_archive_needs_no_ranges_of_its_server(name, served, expected, tmp_path):
    with http_server(served, ranges=False) as server:
        ingest(f"{server.url}/{name}", tmp_path / "lake", runner=SerialRunner())
    assert_same_tables(read_tables(tmp_path / "lake"), expected)


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_single_file_can_be_taken(scheme, served, tmp_path, monkeypatch):
    with s3(served, monkeypatch), http_server(served) as server:
        start = "s3://bucket" if scheme == "s3" else f"{server.url}/bucket"
        report = ingest(f"{start}/some/prefix/slurm-log.csv", tmp_path / "lake", anonymous=True, runner=SerialRunner())
    assert [record.name for record in report.records] == ["slurm-log.csv"]
    assert report.tables["jobs"] == report.rows_out > 0


# -- faults ------------------------------------------------------------------------------------------------------------


def refused(source: str, lake: Path, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """Return the one line that an ingest ends with, after which there is no lake."""
    capfd.readouterr()
    assert run(["lake", "ingest", source, "--lake", str(lake), "--workers", "1", *options]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("jobwatt: ")
    assert not lake.exists()
    return err.removeprefix("jobwatt: ").strip()


class _Denying(BaseHTTPRequestHandler):
    """Says 403 to everything, as S3 does."""

    def do_GET(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def denying() -> Iterator[str]:
    """The URL of a server that gives nothing to anybody."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Denying) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def mute() -> Iterator[str]:
    """The URL of a server that listens and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_bucket_without_leave_is_one_clear_line(denying, tmp_path, monkeypatch, capfd):
    use_s3_at(denying, monkeypatch)
    said = refused("s3://bucket/some/prefix", tmp_path / "lake", capfd, "--anonymous")
    assert said.startswith("s3://bucket/some/prefix: access denied (")
    assert said.endswith("; check the URL, or try --anonymous")


def test_a_bucket_without_an_account_says_so_and_what_helps(served, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with s3(served, monkeypatch):
        assert refused("s3://bucket/some/prefix", tmp_path / "lake", capfd) == (
            "s3://bucket/some/prefix: there is no account for S3 on this machine; set one up, or try --anonymous"
        )


@pytest.mark.parametrize("source", ["s3://bucket/none", "s3://none/some/prefix"])
def test_a_bucket_or_prefix_that_is_not_there_is_one_clear_line(source, served, tmp_path, monkeypatch, capfd):
    with s3(served, monkeypatch):
        said = refused(source, tmp_path / "lake", capfd, "--anonymous")
    assert said.startswith(f"{source}: n")
    assert "check the" in said


@pytest.mark.parametrize("source", ["s3://bucket/some/prefix", "http"])
def test_a_refused_connection_is_one_clear_line_and_soon(source, tmp_path, monkeypatch, capfd):
    use_s3_at("http://127.0.0.1:9", monkeypatch)
    url = "http://127.0.0.1:9/archive.tar.zst" if source == "http" else source
    began = time.monotonic()
    said = refused(url, tmp_path / "lake", capfd, "--anonymous")
    assert said.startswith(f"{url}: ")
    assert "127.0.0.1:9" in said
    assert "check the URL and the network" in said
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_server_that_never_answers_is_given_up_after_a_while(kind, mute, tmp_path, monkeypatch, capfd):
    assert remote.CONNECT_TIMEOUT_S <= 20
    assert remote.READ_TIMEOUT_S <= 60
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.2)
    use_s3_at(mute, monkeypatch)
    url = "s3://bucket/some/prefix" if kind == "s3" else f"{mute}/archive.tar.zst"
    began = time.monotonic()
    assert refused(url, tmp_path / "lake", capfd, "--anonymous").startswith(f"{url}: ")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", PACKED)
def test_a_connection_that_breaks_off_is_one_clear_line_and_no_part_of_the_archive_is_taken(
    name, served, tmp_path, capfd
):
    with http_server(served, drop_after_bytes=2000, drops=1000) as server:
        said = refused(f"{server.url}/{name}", tmp_path / "lake", capfd)
    assert said.startswith(f"{server.url}/{name}: ")
    assert said.endswith("check the URL and the network, and try again")


def test_a_bucket_that_breaks_off_inside_a_file_is_one_clear_line_and_leaves_the_lake_as_it_was(
    served, tmp_path, monkeypatch, capfd
):
    lake = tmp_path / "lake"
    with s3(served, monkeypatch) as server:
        ingest("s3://bucket/some/prefix/slurm-log.csv", lake, anonymous=True, runner=SerialRunner())
        before = read_tables(lake)
        server.drop_after_bytes, server.drops_left = 500, 1000
        capfd.readouterr()
        assert (
            run(["lake", "ingest", "s3://bucket/some/prefix", "--lake", str(lake), "--workers", "1", "--anonymous"])
            == 1
        )
        said = capfd.readouterr().err
    assert said.startswith("jobwatt: s3://bucket/some/prefix/")
    assert said.count("\n") == 1
    assert_same_tables(read_tables(lake), before)
    assert not (lake / "_staging").exists()


def test_a_plain_tar_behind_a_server_without_ranges_says_what_helps(served, tmp_path, capfd):
    with http_server(served, ranges=False) as server:
        said = refused(f"{server.url}/archive.tar", tmp_path / "lake", capfd)
    assert said.endswith("fetch it first, or pack it as .tar.zst")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("http://127.0.0.1:9/nothing.tar", "127.0.0.1:9"),
        ("foo://bucket/archive.tar", "Protocol not known: foo"),
        ("foo://bucket/archive", "Protocol not known: foo"),
    ],
)
def test_a_url_that_leads_nowhere_is_one_clear_line(source, says, tmp_path, capfd):
    said = refused(source, tmp_path / "lake", capfd)
    assert said.startswith(f"{source}: ")
    assert says in said


def test_a_file_that_a_server_does_not_have_is_one_clear_line(served, tmp_path, capfd):
    with http_server(served) as server:
        url = f"{server.url}/nothing.tar"
        assert refused(url, tmp_path / "lake", capfd) == f"{url}: not found; nothing was committed"
