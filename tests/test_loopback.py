import http.client
import urllib.error
import urllib.request

import pytest

from tests.loopback import http_server, s3_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    files = {
        "bucket/a.csv": b"0123456789",
        "bucket/gpu/0001/x.csv": b"x" * 200_000,
        "bucket/gpu/0001/y z&+.csv": b"y",
        "bucket/gpu/0002/x.csv": b"xx",
        "bucket/gpu-more.txt": b"m",
    }
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@pytest.fixture(scope="module", params=[1000, 1], ids=["one page", "a page for each key"])
def s3(folder, request):
    s3fs = pytest.importorskip("s3fs")
    with s3_server(folder, page_size=request.param) as server:
        yield s3fs.S3FileSystem(anon=True, endpoint_url=server.url, skip_instance_cache=True)


def test_s3fs_lists_one_level(s3):
    assert sorted(s3.ls("bucket")) == ["bucket/a.csv", "bucket/gpu", "bucket/gpu-more.txt"]
    assert sorted(s3.ls("bucket/gpu")) == ["bucket/gpu/0001", "bucket/gpu/0002"]


def test_s3fs_finds_every_key_below_a_prefix(s3):
    found = s3.find("bucket/gpu", detail=True)
    assert {key: info["size"] for key, info in found.items()} == {
        "bucket/gpu/0001/x.csv": 200_000,
        "bucket/gpu/0001/y z&+.csv": 1,
        "bucket/gpu/0002/x.csv": 2,
    }
    assert s3.glob("bucket/gpu/*/x.csv") == ["bucket/gpu/0001/x.csv", "bucket/gpu/0002/x.csv"]


def test_s3fs_reads_whole_files_and_ranges(s3):
    assert s3.cat_file("bucket/a.csv") == b"0123456789"
    assert s3.cat_file("bucket/a.csv", start=2, end=5) == b"234"
    assert s3.cat_file("bucket/a.csv", start=-3) == b"789"
    with s3.open("bucket/gpu/0001/x.csv", "rb", block_size=50_000) as file:
        file.seek(150_000)
        assert len(file.read()) == 50_000
    assert s3.cat_file("bucket/gpu/0001/y z&+.csv") == b"y"


def test_s3fs_tells_files_folders_and_nothing_apart(s3):
    assert s3.info("bucket/a.csv")["size"] == 10
    assert s3.isfile("bucket/a.csv")
    assert s3.isdir("bucket/gpu")
    assert not s3.exists("bucket/none")
    with pytest.raises(FileNotFoundError):
        s3.cat_file("bucket/none")
    with pytest.raises(FileNotFoundError):
        s3.ls("no-bucket")


def get(url, byte_range=None):
    request = urllib.request.Request(url, headers={"Range": byte_range} if byte_range else {})
    with urllib.request.urlopen(request) as answer:
        return answer.status, answer.read(), dict(answer.headers)


def test_http_serves_ranges(folder):
    with http_server(folder) as server:
        url = f"{server.url}/bucket/a.csv"
        assert get(url)[:2] == (200, b"0123456789")
        status, content, headers = get(url, "bytes=4-")
        assert (status, content, headers["Content-Range"]) == (206, b"456789", "bytes 4-9/10")
        assert get(url, "bytes=0-0")[1] == b"0"
        assert get(url, "bytes=-2")[1] == b"89"
        assert [request.byte_range for request in server.requests] == [None, "bytes=4-", "bytes=0-0", "bytes=-2"]


@pytest.mark.parametrize("byte_range", ["bytes=10-", "bytes=7-3", "bytes=-", "lines=1-2"])
def test_a_range_that_cannot_be_is_refused(folder, byte_range):
    with http_server(folder) as server, pytest.raises(urllib.error.HTTPError) as error:
        get(f"{server.url}/bucket/a.csv", byte_range)
    assert error.value.code == 416


def test_a_connection_breaks_off_once_and_not_again(folder):
    with http_server(folder, drop_after_bytes=70_000, drops=1) as server:
        url = f"{server.url}/bucket/gpu/0001/x.csv"
        with pytest.raises(http.client.IncompleteRead) as error:
            get(url)
        assert len(error.value.partial) == 70_000
        assert get(url, "bytes=70000-")[1] == b"x" * 130_000
        assert len(get(url)[1]) == 200_000


def test_short_answers_are_not_cut(folder):
    with http_server(folder, drop_after_bytes=70_000, drops=1) as server:
        assert get(f"{server.url}/bucket/a.csv")[1] == b"0123456789"
        assert server.drops_left == 1


def test_a_server_without_ranges_sends_everything(folder):
    with http_server(folder, ranges=False) as server:
        status, content, headers = get(f"{server.url}/bucket/a.csv", "bytes=4-")
    assert (status, content) == (200, b"0123456789")
    assert "Accept-Ranges" not in headers


@pytest.mark.parametrize("path", ["/none", "/bucket", "/../outside.txt", "/%2e%2e/outside.txt"])
def test_only_files_below_the_folder_are_served(folder, path):
    (folder / "outside.txt").write_text("secret")
    with http_server(folder / "bucket") as server, pytest.raises(urllib.error.HTTPError) as error:
        get(server.url + path)
    assert error.value.code == 404
