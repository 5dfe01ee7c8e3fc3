from __future__ import annotations

import json
import time
from pathlib import Path

import polars as pl
import pytest

from app.cli import run
from ingest.lake import Lake
from ingest.maintenance import maintain
from tests.features.lakes import after, gpu_name, job_file, make_lake, variant
from tests.small_sources import START_S, take, write
from tests.spool_files import gpu_cells, make_spool, write_segment

WINDOWS = ["--seconds", "4", "--samples-per-s", "2"]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    made = make_lake(tmp_path)
    write(tmp_path / "source", gpu_name(109), job_file(seconds=3.0))
    take(tmp_path / "source", made, cluster="one")
    return made


def extract(lake: Path, *more: str) -> int:
    command = ["features", "extract", "--lake", str(lake), "--set", "statistical", *WINDOWS, "--place", "start"]
    return run([*command, "--workers", "1", *more])


def test_extract_reports_windows_jobs_short_ones_rows_and_seconds(lake, capsys):
    assert extract(lake, "--format", "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["variant"] == variant().name
    found = {name: report[name] for name in ("windows", "jobs", "jobs_short", "reasons", "rows")}
    assert found == {"windows": 3, "jobs": 4, "jobs_short": 1, "reasons": {"shorter_than_window": 1}, "rows": 3}
    assert report["seconds"] > 0


def test_a_repeated_extract_says_that_nothing_was_made_anew(lake, capsys):
    extract(lake)
    capsys.readouterr()
    assert extract(lake) == 0
    assert capsys.readouterr().err == f"{lake} has {variant().name} of all series already; nothing was made anew\n"


def test_the_table_is_exported_whole_also_when_it_was_there_already(lake, tmp_path):
    extract(lake)
    assert extract(lake, "--out", str(tmp_path / "out.parquet")) == 0
    found = pl.read_parquet(tmp_path / "out.parquet").sort("job_id")
    assert found.equals(Lake(lake).scan_features(variant().name).sort("job_id").collect())
    assert list(tmp_path.glob(".*")) == []


def test_the_table_is_exported_whole_while_a_follower_merges_its_parts(lake, tmp_path, monkeypatch):
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", 1)
    extract(lake)
    assert len(Lake(lake).paths("features")) == 3
    merge = after(2, Lake.scan_features, lambda: maintain(lake, "one", compact_after=1))
    monkeypatch.setattr(Lake, "scan_features", merge)  # the report has been made by the second time
    assert extract(lake, "--out", str(tmp_path / "out.parquet")) == 0
    assert len(Lake(lake).paths("features")) == 1
    assert sorted(pl.read_parquet(tmp_path / "out.parquet")["job_id"]) == [101, 102, 103]


def test_an_unknown_set_is_refused_with_the_names_of_those_there_are(lake, capsys):
    assert run(["features", "extract", "--lake", str(lake), "--set", "catch22"]) == 2
    assert "no feature set is called 'catch22'; choose among covariance, statistical" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "intervals", "--seconds", "0.2"], "has 2; the set 'intervals' needs 4 or more"),
        (["--set", "job", "--stride", "5"], "only sliding windows have one"),
        (["--set", "job", "--even"], "--even needs --max-gap"),
        (["--set", "job", "--samples-per-s", "1e12"], "seconds x samples_per_s is 60 x 1e+12"),
        (["--set", "job", "--seconds", "1e-7", "--place", "slide"], "seconds is 1e-07; give 0.001"),
        (["--set", "job", "--out", "/nowhere/at/all.parquet"], "its folder does not exist"),
        (["--set", "job", "--slurm", "--scheduler", "tcp://127.0.0.1:1"], "exclude each other"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(options, says, lake, capsys):
    assert run(["features", "extract", "--lake", str(lake), *options]) == 2
    assert says in capsys.readouterr().err


def test_a_lake_without_the_table_is_a_data_problem_in_one_line(tmp_path, capsys):
    assert extract(tmp_path / "none") == 1
    assert "is no lake" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_list_and_short_tell_what_there_is_and_what_gave_no_window(lake, capsys):
    extract(lake)
    capsys.readouterr()
    assert run(["features", "list", "--lake", str(lake), "--format", "json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["cluster"], listed["variant"], listed["rows"]) == ("one", variant().name, 3)
    assert run(["features", "short", "--lake", str(lake), "--format", "json"]) == 0
    (short,) = json.loads(capsys.readouterr().out)
    assert (short["job_id"], short["samples"], short["reason"]) == (109, 7, "shorter_than_window")
    assert extract(lake, "--seconds", "2") == 0
    capsys.readouterr()
    none = ["--variant", variant(seconds=2.0).name, "--cluster", "one"]
    assert run(["features", "short", "--lake", str(lake), *none, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--variant", "statistcal-v2"],
            "no features of a variant 'statistcal-v2'; it has those of statistical-v2-4s-st",
        ),
        (["--cluster", "two"], "no features of a cluster 'two'; it has those of one"),
    ],
)
def test_short_refuses_what_there_are_no_features_of(options, says, lake, capsys):
    assert run(["features", "short", "--lake", str(lake), *options]) == 1
    assert "it has those of none: make some with" in capsys.readouterr().err
    extract(lake)
    assert run(["features", "short", "--lake", str(lake), *options]) == 1
    assert says in capsys.readouterr().err


def test_a_lake_of_idle_gpus_is_said_to_have_nothing_to_describe(tmp_path, capsys):
    spool = make_spool(tmp_path / "spool")
    write_segment(spool, "gpu", 1, [gpu_cells(i / 2.0, None) for i in range(50)])
    take(spool, tmp_path / "lake")
    assert extract(tmp_path / "lake", "--out", str(tmp_path / "out.parquet")) == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"{tmp_path / 'lake'} has no GPU sample of a job, so there is nothing to describe",
        f"no window, so {tmp_path / 'out.parquet'} was not written",
    ]


def test_a_file_that_cannot_be_made_is_refused_before_anything_is_extracted(lake, capsys):
    assert extract(lake, "--out", "/proc/x.parquet") == 2
    assert "--out /proc/x.parquet: " in capsys.readouterr().err
    assert Lake(lake).variants() == ()


def test_lake_info_and_check_know_the_tables(lake, capsys):
    extract(lake)
    capsys.readouterr()
    assert run(["lake", "info", "--lake", str(lake), "--format", "json"]) == 0
    rows = {table["name"]: table["rows"] for table in json.loads(capsys.readouterr().out)}
    assert (rows["features"], rows["feature_series"]) == (3, 4)
    part = next((lake / "features").rglob("*.parquet"))
    part.with_name("part-999999-00000.parquet").write_bytes(part.read_bytes())
    part.unlink()
    assert run(["lake", "check", "--lake", str(lake), "--format", "json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(problem.endswith("missing") for problem in problems)
    assert any("not part of the lake" in problem for problem in problems)


def test_live_gives_the_features_in_json_and_whose_they_are_in_a_table(lake, monkeypatch, capsys):
    command = ["features", "live", "--lake", str(lake), "--set", "statistical", *WINDOWS]
    monkeypatch.setattr(time, "time", lambda: START_S + 11.0)
    assert run([*command, "--format", "json"]) == 0
    told = capsys.readouterr()
    rows = json.loads(told.out)
    assert [row["job_id"] for row in rows] == [101, 102, 103]
    assert rows[0]["power_w__maximum"] == 121.0
    assert run(command) == 0
    told = capsys.readouterr()
    assert "91 features; --format json, csv or parquet has them" in told.err
    assert "power_w__maximum" not in told.out
    assert "job 109 on n1, GPU 0: no window, too_few_samples" in told.err


def test_live_says_that_no_job_runs(lake, capsys):
    assert run(["features", "live", "--lake", str(lake), "--set", "job", *WINDOWS, "--format", "json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == []
    assert "no job runs in" in told.err
