from __future__ import annotations

import json
from dataclasses import replace

import pytest

from app.cli import run
from ingest.sources.public_data import read_catalogue
from tests.loopback import http_server


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A catalogue of one set, served on this machine."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path)
    with http_server(tmp_path / "served") as server:
        some = replace(
            read_catalogue()[0], name="some-set", url=server.url, files=("a.csv",), licence="CC0", size_bytes=8
        )
        monkeypatch.setattr("ingest.sources.public_data.read_catalogue", lambda: (some,))
        yield tmp_path


def test_the_list_names_the_supercloud_release_with_its_licence_and_size(capfd):
    assert run(["data", "list", "--format", "json"]) == 0
    sets = {each["name"]: each for each in json.loads(capfd.readouterr().out)}
    challenge = sets["mit-supercloud-datacenter-challenge"]
    assert challenge["licence"] == "CC BY-NC-ND 4.0"
    assert challenge["size_gb"] == 2400
    known = {each.name for each in read_catalogue() if each.sha256}
    for name, each in sets.items():
        assert (each["checksum"] == "catalogue") == (name in known)
        assert (each["checksum"] == "commit") == each["url"].startswith("git+")
    assert challenge["checksum"] == "recorded at first fetch"
    assert challenge["url"].startswith("s3://mit-supercloud-dataset/datacenter-challenge/202201")


def test_nothing_is_fetched_before_the_licence_is_accepted(served, capfd):
    assert run(["data", "fetch", "some-set"]) == 2
    said = capfd.readouterr().err
    assert "licence: CC0" in said
    assert "--accept-licence" in said
    assert not (served / "data").exists()


def test_a_set_is_fetched_into_data_raw_by_its_name(served, capfd):
    assert run(["data", "fetch", "some-set", "--accept-licence", "--format", "json"]) == 0
    out, err = capfd.readouterr()
    assert (served / "data/raw/some-set/a.csv").read_text() == "a,b\n1,2\n"
    report = json.loads(out)
    assert (report["fetched_bytes"], report["files"][0]["path"]) == (8, "a.csv")
    assert "licence: CC0" in err


def test_a_progress_bar_is_shown_where_it_is_asked_for(served, capfd):
    assert run(["data", "fetch", "some-set", "--accept-licence", "--progress"]) == 0
    assert "100%" in capfd.readouterr().err


def test_an_unknown_set_and_a_pattern_that_nothing_matches_end_in_one_line_and_code_1(served, capfd):
    assert run(["data", "fetch", "no-such-set"]) == 1
    assert capfd.readouterr().err == "jobwatt: no public data set is called 'no-such-set'; there are some-set\n"
    assert run(["data", "fetch", "some-set", "--accept-licence", "--only", "x*"]) == 1
    assert "no file that matches x*" in capfd.readouterr().err.splitlines()[-1]
