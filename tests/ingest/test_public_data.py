from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from ingest.errors import SourceError
from ingest.sources.download import ATTEMPTS, read_sums
from ingest.sources.public_data import (
    FetchReport,
    PublicDataset,
    fetch_dataset,
    find_dataset,
    list_files,
    read_catalogue,
)
from tests.loopback import Server, http_server, s3_server

BLOCK_BYTES = 1000
CONTENT = bytes(range(256)) * 20  # 5,120 bytes: five blocks and a bit
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def dataset(url: str, *files: str, sha256: tuple[str, ...] = (), size_bytes: int | None = None) -> PublicDataset:
    return PublicDataset(
        name="some-set",
        title="Some set",
        licence="CC0",
        licence_url="https://example.org/licence",
        url=url,
        files=files,
        size_bytes=size_bytes,
        sha256=sha256,
        citation="Somebody, 2026",
        source="a test",
    )


def fetch(what: PublicDataset, folder: Path, *only: str, **options: object) -> FetchReport:
    return fetch_dataset(what, folder, only=only, block_bytes=BLOCK_BYTES, wait_s=0, storage_options=options)


def first_bytes(server: Server) -> list[int]:
    """The first byte of each range that was asked for, in order."""
    ranges = [request.byte_range for request in server.requests if request.byte_range]
    return [int(text.removeprefix("bytes=").partition("-")[0]) for text in ranges]


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "a.csv").write_bytes(CONTENT)
    (folder / "sub dir" / "b.csv").write_bytes(b"b")
    return folder


def test_a_set_arrives_whole_with_its_checksums_recorded(served, tmp_path):
    with http_server(served) as server:
        report = fetch(dataset(server.url, "a.csv", "sub dir/b.csv"), tmp_path / "here")
    assert (tmp_path / "here/a.csv").read_bytes() == CONTENT
    assert (tmp_path / "here/sub dir/b.csv").read_bytes() == b"b"
    assert read_sums(tmp_path / "here") == {"a.csv": DIGEST, "sub dir/b.csv": hashlib.sha256(b"b").hexdigest()}
    assert [(file.state, file.fetched_bytes) for file in report.files] == [("fetched", 5120), ("fetched", 1)]
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["SHA256SUMS", "a.csv", "sub dir"]


def test_a_broken_download_goes_on_at_the_first_missing_byte(served, tmp_path):
    here = tmp_path / "here"
    with http_server(served) as server:
        what = dataset(server.url, "a.csv")
        server.drop_after_bytes, server.drops_left = 500, 0

        def break_after_two_blocks(done_bytes: int, total_bytes: int) -> None:
            assert total_bytes == 5120
            if done_bytes == 2000:
                server.drops_left = ATTEMPTS

        with pytest.raises(SourceError, match=r"broke off at byte 2000 of 5120 .*the same command goes on"):
            fetch_dataset(what, here, block_bytes=BLOCK_BYTES, wait_s=0, progress=break_after_two_blocks)
        assert not (here / "a.csv").exists()
        assert server.drops_left == 0
        server.requests.clear()
        report = fetch(what, here)
    assert first_bytes(server) == [2000, 3000, 4000, 5000]
    assert (here / "a.csv").read_bytes() == CONTENT
    assert (report.files[0].state, report.fetched_bytes) == ("resumed", 3120)
    assert list(here.glob(".*.part")) == []


def test_a_connection_that_drops_less_often_than_we_ask_is_not_even_noticed(served, tmp_path):
    with http_server(served, drop_after_bytes=500, drops=ATTEMPTS - 1) as server:
        report = fetch(dataset(server.url, "a.csv"), tmp_path / "here")
    assert (tmp_path / "here/a.csv").read_bytes() == CONTENT
    assert report.files[0].state == "fetched"


def test_what_was_begun_from_another_version_of_the_file_is_thrown_away(served, tmp_path):
    here = tmp_path / "here"
    with http_server(served) as server:
        what = dataset(server.url, "a.csv")

        def stop(done_bytes: int, total_bytes: int) -> None:
            if done_bytes == 2000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch_dataset(what, here, block_bytes=BLOCK_BYTES, progress=stop)
        assert [path.stat().st_size for path in here.glob(".*.part")] == [2000]
        (served / "a.csv").write_bytes(CONTENT[::-1])
        report = fetch(what, here)
    assert (here / "a.csv").read_bytes() == CONTENT[::-1]
    assert report.fetched_bytes == 5120
    assert list(here.glob(".*.part")) == []


def test_a_server_without_ranges_is_read_from_the_beginning(served, tmp_path):
    with http_server(served, ranges=False) as server:
        report = fetch(dataset(server.url, "a.csv"), tmp_path / "here")
    assert (tmp_path / "here/a.csv").read_bytes() == CONTENT
    assert report.files[0].sha256 == DIGEST


def test_a_wrong_checksum_is_refused_and_nothing_of_it_is_kept(served, tmp_path):
    here = tmp_path / "here"
    with http_server(served) as server, pytest.raises(SourceError) as caught:
        fetch(dataset(server.url, "a.csv", sha256=("0" * 64,)), here)
    assert DIGEST in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert list(here.iterdir()) == []


def test_the_right_checksum_of_the_catalogue_is_accepted(served, tmp_path):
    with http_server(served) as server:
        report = fetch(dataset(server.url, "a.csv", sha256=(DIGEST,)), tmp_path / "here")
    assert report.files[0].state == "fetched"


def test_a_file_that_is_here_and_right_is_not_fetched_again(served, tmp_path):
    with http_server(served) as server:
        what = dataset(server.url, "a.csv")
        fetch(what, tmp_path / "here")
        server.requests.clear()
        report = fetch(what, tmp_path / "here")
    assert {request.method for request in server.requests} == {"HEAD"}
    assert (report.files[0].state, report.fetched_bytes) == ("unchanged", 0)


def test_a_file_that_was_damaged_here_is_fetched_again(served, tmp_path):
    with http_server(served) as server:
        what = dataset(server.url, "a.csv")
        fetch(what, tmp_path / "here")
        (tmp_path / "here/a.csv").write_bytes(b"\xff" + CONTENT[1:])
        report = fetch(what, tmp_path / "here")
    assert (tmp_path / "here/a.csv").read_bytes() == CONTENT
    assert report.fetched_bytes == 5120


def test_without_a_checksum_in_the_catalogue_later_fetches_must_bring_what_the_first_one_did(served, tmp_path):
    here = tmp_path / "here"
    with http_server(served) as server:
        what = dataset(server.url, "a.csv")
        fetch(what, here)
        (served / "a.csv").write_bytes(CONTENT[::-1])
        (here / "a.csv").unlink()
        with pytest.raises(SourceError, match=rf"but {DIGEST} was recorded when it was first fetched; it was not kept"):
            fetch(what, here)
        assert [path.name for path in here.iterdir()] == ["SHA256SUMS"]
        assert read_sums(here) == {"a.csv": DIGEST}
        assert fetch(what, tmp_path / "elsewhere").files[0].sha256 == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_the_catalogue_is_believed_before_what_an_earlier_fetch_recorded(served, tmp_path):
    with http_server(served) as server:
        fetch(dataset(server.url, "a.csv"), tmp_path / "here")
        (served / "a.csv").write_bytes(CONTENT[::-1])
        digest = hashlib.sha256(CONTENT[::-1]).hexdigest()
        fetch(dataset(server.url, "a.csv", sha256=(digest,)), tmp_path / "here")
    assert read_sums(tmp_path / "here") == {"a.csv": digest}
    assert [path.name for path in sorted((tmp_path / "here").iterdir())] == ["SHA256SUMS", "a.csv"]


def test_a_set_says_by_what_its_files_are_checked():
    assert dataset("https://x/y", "a.csv").checksum == "recorded at first fetch"
    assert dataset("https://x/y", "a.csv", sha256=(DIGEST,)).checksum == "catalogue"
    assert dataset("git+https://x/y@abc").checksum == "commit"


def test_a_bucket_is_listed_and_only_what_matches_is_fetched(tmp_path):
    bucket = tmp_path / "served" / "bucket"
    for path in ("set/slurm-log.csv", "set/gpu/0000/1.csv", "set/gpu/0000/2.csv", "set/gpu/0001/3.csv", "other/x.csv"):
        (bucket / path).parent.mkdir(parents=True, exist_ok=True)
        (bucket / path).write_text(path)
    with s3_server(tmp_path / "served", page_size=2) as server:
        what = dataset("s3://bucket/set")
        options = {"endpoint_url": server.url}
        report = fetch(what, tmp_path / "one", "slurm-log.csv", **options)
        assert [file.path for file in report.files] == ["slurm-log.csv"]
        report = fetch(what, tmp_path / "folder", "gpu/0000", **options)
        assert [file.path for file in report.files] == ["gpu/0000/1.csv", "gpu/0000/2.csv"]
        report = fetch(what, tmp_path / "glob", "gpu/*/[13].csv", "slurm*", **options)
        assert [file.path for file in report.files] == ["gpu/0000/1.csv", "gpu/0001/3.csv", "slurm-log.csv"]
        report = fetch(what, tmp_path / "all", **options)
        assert len(report.files) == 4
        with pytest.raises(SourceError, match=r"no file that matches nothing\.csv"):
            fetch(what, tmp_path / "none", "nothing.csv", **options)
    assert (tmp_path / "glob/gpu/0001/3.csv").read_text() == "set/gpu/0001/3.csv"


def test_a_file_that_the_server_does_not_have_is_named(served, tmp_path):
    with http_server(served) as server, pytest.raises(SourceError, match=r"does not answer .*gone\.csv"):
        fetch(dataset(server.url, "gone.csv"), tmp_path / "here")


def test_a_server_that_is_not_there_is_named(served, tmp_path):
    with http_server(served) as server:
        url = server.url
    with pytest.raises(SourceError, match=url):
        fetch(dataset(url, "a.csv"), tmp_path / "here")


@pytest.mark.parametrize("path", ["../a.csv", "/etc/passwd", "x/../../a.csv", "SHA256SUMS", "a\nb.csv"])
def test_a_path_that_leads_out_of_the_folder_is_refused(path, served, tmp_path):
    class AnySystem:
        def info(self, _: str) -> dict[str, int]:
            return {"size": 1}

    with pytest.raises(SourceError, match="cannot be written below one folder"):
        list_files(dataset("http://127.0.0.1", path), AnySystem())


def test_a_set_greater_than_the_disk_is_refused_before_anything_is_asked(served, tmp_path):
    with http_server(served) as server, pytest.raises(SourceError, match=r"needs 1,000,000\.0 GB .*--only"):
        fetch(dataset(server.url, "a.csv", size_bytes=10**15), tmp_path / "here")
    assert server.requests == []


def test_a_git_repository_is_answered_with_the_commands_that_get_it(tmp_path):
    what = dataset("git+https://github.com/some/repo@abc123")
    with pytest.raises(SourceError, match=r"git clone https://github\.com/some/repo && git checkout abc123"):
        fetch(what, tmp_path / "here")


def test_two_fetches_of_one_file_do_not_write_into_each_other(served, tmp_path):
    here = tmp_path / "here"
    with http_server(served) as server:
        what = dataset(server.url, "a.csv")

        def fetch_it_meanwhile(done_bytes: int, total_bytes: int) -> None:
            with pytest.raises(SourceError, match="being written by another fetch"):
                fetch(what, here)

        fetch_dataset(what, here, block_bytes=BLOCK_BYTES, progress=fetch_it_meanwhile)
    assert (here / "a.csv").read_bytes() == CONTENT


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_every_set_of_the_catalogue_says_where_it_is_and_under_which_licence():
    catalogue = read_catalogue()
    assert len({each.name for each in catalogue}) == len(catalogue)
    assert {"mit-supercloud-datacenter-challenge", "mit-supercloud-hpca22"} <= {each.name for each in catalogue}
    for each in catalogue:
        assert each.title, each
        assert each.licence, each
        assert each.citation, each
        assert each.source, each
        assert each.licence_url.startswith("https://"), each
        protocol = each.url.partition("://")[0]
        assert protocol in ("s3", "https", "git+https"), each
        assert bool(each.files) == (protocol == "https"), f"{each.name}: a web server cannot list its files"
        assert len(each.sha256) in (0, len(each.files)), each
        assert all(PurePosixPath(path).parts and ".." not in path for path in each.files), each


def test_a_github_set_is_pinned_to_a_commit():
    for each in read_catalogue():
        if "github" in each.url:
            commit = each.url.rpartition("@" if each.url.startswith("git+") else "/")[2]
            assert len(commit) == 40, each
            assert commit in each.source, each


def test_a_set_is_found_by_name_and_an_unknown_name_is_answered_with_those_there_are():
    first, second = dataset("s3://x/y"), replace(dataset("s3://x/z"), name="other")
    assert find_dataset("other", [first, second]) is second
    with pytest.raises(SourceError, match="'third'; there are some-set, other"):
        find_dataset("third", [first, second])
