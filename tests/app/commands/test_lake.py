from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from app.cli import run
from app.runners import open_runner
from ingest.runner import PoolRunner, SerialRunner, usable_cores
from tests.gpu_files import write_gpu_file


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder of two jobs, which is also the current folder's neighbour."""
    folder = tmp_path / "archive"
    write_gpu_file(folder, 101)
    write_gpu_file(folder, 102, samples=30, watts=250.0)
    monkeypatch.chdir(tmp_path)
    return folder


def ingest(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    capfd.readouterr()
    code = run(["lake", "ingest", *arguments, "--lake", "lake", "--workers", "1", "--format", "json"])
    return code, json.loads(capfd.readouterr().out or "{}")


def test_the_report_of_an_ingest_has_what_scripts_rely_on(archive, capfd):
    code, report = ingest(capfd, str(archive))
    assert code == 0
    assert (report["files"], report["rows_in"], report["rows_out"]) == (2, 50, 50)
    assert (report["rows_quarantined"], report["rows_merged"], report["rows_unchanged"]) == (0, 0, 0)
    assert report["tables"]["gpu_samples"] == 50
    assert report["tables"]["job_stats"] == 2
    assert report["seconds"] > 0
    assert "records" not in report


def test_the_same_ingest_again_changes_nothing(archive, capfd):
    ingest(capfd, str(archive))
    code, report = ingest(capfd, str(archive))
    assert (code, report["rows_in"], report["rows_unchanged"]) == (0, 50, 50)


def test_a_row_that_cannot_be_taken_ends_in_code_3_with_its_reason(archive, capfd):
    write_gpu_file(archive, 103, bad="not a number,0,1,1,1,1,1,1,1,1")
    code, report = ingest(capfd, str(archive))
    assert (code, report["rows_in"], report["rows_out"], report["rows_quarantined"]) == (3, 71, 70, 1)
    assert sum(report["reasons"].values()) == 1


def test_the_lake_of_the_settings_is_the_one_that_is_filled(archive, monkeypatch):
    monkeypatch.setenv("JOBWATT_LAKE", "from-environment")
    assert run(["lake", "ingest", str(archive), "--workers", "1"]) == 0
    assert (archive.parent / "from-environment" / "gpu_samples").is_dir()


def test_info_shows_rows_and_bytes_of_each_table(archive, capfd):
    ingest(capfd, str(archive), "--cluster", "north")
    assert run(["lake", "info", "--lake", "lake", "--format", "json"]) == 0
    tables = {each["name"]: each for each in json.loads(capfd.readouterr().out)}
    assert (tables["gpu_samples"]["rows"], tables["gpu_samples"]["clusters"]) == (50, ["north"])
    on_disk = sum(path.stat().st_size for path in Path("lake/gpu_samples").rglob("*.parquet"))
    assert tables["gpu_samples"]["bytes"] == on_disk


def test_a_check_shows_how_far_it_is_where_that_is_asked_for(archive, capfd):
    ingest(capfd, str(archive))
    assert run(["lake", "check", "--lake", "lake", "--progress"]) == 0
    assert "check: 100%" in capfd.readouterr().err
    assert run(["lake", "check", "--lake", "lake", "--no-progress"]) == 0
    assert capfd.readouterr().err == ""


def test_a_sound_lake_checks_with_code_0_and_a_damaged_one_with_code_1_and_the_file(archive, capfd):
    ingest(capfd, str(archive))
    assert run(["lake", "check", "--lake", "lake"]) == 0
    part = next(Path("lake/gpu_samples").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    capfd.readouterr()
    assert run(["lake", "check", "--lake", "lake", "--format", "json"]) == 1
    assert any(part.name in problem for problem in json.loads(capfd.readouterr().out)["problems"])
    assert run(["doctor", "--lake", "lake"]) == 1
    assert part.name in capfd.readouterr().out


@pytest.mark.parametrize("spoil", [Path.unlink, lambda part: part.write_bytes(part.read_bytes()[:-100])])
def test_rows_of_a_part_that_was_lost_are_not_passed_over_as_unchanged(archive, capfd, spoil):
    ingest(capfd, str(archive))
    part = next(Path("lake/gpu_samples").rglob("*.parquet"))
    spoil(part)
    assert run(["lake", "ingest", str(archive), "--lake", "lake", "--workers", "1"]) == 1
    assert f"1 of its files are missing or cut, as {part.relative_to('lake')};" in capfd.readouterr().err


def test_a_progress_bar_is_shown_on_standard_error_where_it_is_asked_for(archive, capfd):
    ingest(capfd, str(archive))
    code = run(["lake", "ingest", str(archive), "--lake", "lake2", "--workers", "1", "--progress", "--format", "json"])
    out, err = capfd.readouterr()
    assert code == 0
    assert json.loads(out)["rows_in"] == 50
    assert "100%" in err
    told = [err.find(f"ingest, {phase}") for phase in ("planning", "reading", "committing")]
    assert told == sorted(told)
    assert told[0] >= 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere"], 1, "nowhere: no such file or folder"),
        (["archive", "--cluster", "a/b"], 2, "'a/b'; give a letter"),
        (["archive", "--cluster", "007"], 2, "'007'; give a letter"),
        (["archive", "--workers", "0"], 2, "'--workers'"),
        (["archive", "--max-member-gib", "0"], 2, "'--max-member-gib'"),
        (["archive", "--scheduler", "tcp://x:1", "--slurm"], 2, "exclude each other"),
    ],
)
def test_what_cannot_be_ingested_is_said_in_a_line_and_leaves_no_lake(arguments, code, says, archive, capfd):
    assert run(["lake", "ingest", *arguments, "--lake", "lake"]) == code
    assert says in capfd.readouterr().err
    assert not Path("lake").exists()


def test_the_work_is_done_by_as_many_local_processes_as_there_are_cores_unless_told():
    assert isinstance(open_runner(1, None, False), SerialRunner)
    runner = open_runner(3, None, False)
    assert isinstance(runner, PoolRunner)
    assert runner.workers == 3
    assert open_runner(None, None, False).workers == usable_cores()


def test_an_output_file_of_the_report_is_parquet_that_can_be_read(archive, tmp_path):
    target = tmp_path / "report.parquet"
    arguments = ["--lake", "lake", "--workers", "1", "--format", "parquet", "--output", str(target)]
    assert run(["lake", "ingest", str(archive), *arguments]) == 0
    report = pl.read_parquet(target)
    assert report["rows_in"].to_list() == [50]
    assert json.loads(report["tables"][0])["gpu_samples"] == 50
