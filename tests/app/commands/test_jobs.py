from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest

from app.cli import run
from app.commands.jobs import SORTS
from app.jobs_view import LIST_COLUMNS
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from tests.gpu_files import write_gpu_file


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A lake of two clusters: 101 and 102 in the north, another 102 in the south."""
    folder = tmp_path_factory.mktemp("jobs")
    write_gpu_file(folder / "north", 101, samples=101, watts=360.0)  # 10 s: 3,600 J, 0.001 kWh
    write_gpu_file(folder / "north", 102, samples=31, watts=100.0, bad="nonsense")
    write_gpu_file(folder / "south", 102, samples=11, watts=50.0)
    for cluster in ("north", "south"):
        ingest(str(folder / cluster), folder / "lake", cluster=cluster, runner=SerialRunner())
    return folder / "lake"


def ask(capfd: pytest.CaptureFixture[str], lake: Path, verb: str, *arguments: str) -> tuple[int, str, str]:
    code = run(["jobs", verb, "--lake", str(lake), *arguments])
    return code, *capfd.readouterr()


def test_jobs_of_all_clusters_are_listed_with_their_watts_and_energy(lake, capfd):
    code, out, _ = ask(capfd, lake, "list", "--sort", "energy_kwh", "--format", "json")
    jobs = json.loads(out)
    assert code == 0
    assert [(job["cluster"], job["job_id"]) for job in jobs] == [("north", 101), ("north", 102), ("south", 102)]
    assert jobs[0]["energy_kwh"] == pytest.approx(0.001)
    assert jobs[0]["power_mean_w"] == pytest.approx(360.0)
    assert jobs[0]["state"] is None


def test_the_list_can_be_of_one_cluster_and_cut(lake, capfd):
    _, out, _ = ask(capfd, lake, "list", "--cluster", "south", "--format", "csv")
    assert len(out.splitlines()) == 2
    _, out, err = ask(capfd, lake, "list", "--limit", "1")
    assert len(out.splitlines()) == 3
    assert err == ""


def test_a_list_without_jobs_still_has_its_columns(lake, capfd):
    code, out, _ = ask(capfd, lake, "list", "--user", "nobody", "--format", "parquet", "--output", str(lake / "x"))
    assert (code, out) == (0, "")
    assert pl.read_parquet(lake / "x").columns == list(LIST_COLUMNS)
    (lake / "x").unlink()


def test_parquet_goes_to_a_pipe_as_bytes(lake, capfdbinary):
    assert run(["jobs", "list", "--format", "parquet", "--lake", str(lake)]) == 0
    assert pl.read_parquet(io.BytesIO(capfdbinary.readouterr().out)).height == 3


def test_everything_that_can_be_sorted_by_is_a_column_of_the_list():
    assert set(SORTS) <= set(LIST_COLUMNS)


def test_one_job_is_shown_with_its_energy_and_its_gpus(lake, capfd):
    code, out, _ = ask(capfd, lake, "show", "101", "--format", "json")
    job = json.loads(out)
    assert code == 0
    assert job["energy_j"] == pytest.approx(3600.0)
    assert job["power_max_w"] == pytest.approx(360.0)
    assert (job["samples"], job["gaps"], job["coverage"]) == (101, 0, pytest.approx(1.0))
    assert [(gpu["node"], gpu["gpu_index"], gpu["samples"]) for gpu in job["used"]] == [("r1-n1", 0, 101)]
    assert job["reasons"] == []


def test_a_job_whose_file_had_a_bad_line_shows_the_reason(lake, capfd):
    _, out, _ = ask(capfd, lake, "show", "102", "--cluster", "north", "--format", "json")
    reasons = [reason for reason in json.loads(out)["reasons"] if reason["table"] == "quarantine"]
    assert [reason["count"] for reason in reasons] == [1]


def test_a_job_id_of_two_clusters_asks_for_one_of_them(lake, capfd):
    code, _, err = ask(capfd, lake, "show", "102")
    assert code == 2
    assert "north, south" in err
    assert "--cluster" in err
    code, out, _ = ask(capfd, lake, "show", "102", "--cluster", "south", "--format", "json")
    assert (code, json.loads(out)["samples"]) == (0, 11)


def test_an_unknown_job_is_one_line_and_code_1_and_no_number_is_code_2(lake, capfd):
    assert ask(capfd, lake, "show", "7") == (
        1,
        "",
        f"jobwatt: no job 7 in {lake}; `jobwatt jobs list` shows what there is\n",
    )
    code, _, err = ask(capfd, lake, "show", "101", "--cluster", "south")
    assert (code, "no job 101 in cluster south" in err) == (1, True)
    for wrong in ("seven", "1e3", "-1", "9223372036854775808"):
        code, _, err = ask(capfd, lake, "show", "--", wrong)
        assert (code, "Invalid value for 'JOB_ID'" in err) == (2, True)


def test_a_lake_whose_file_is_damaged_is_one_line_and_code_1(lake, capfd):
    part = next((lake / "job_stats").rglob("*.parquet"))
    whole = part.read_bytes()
    try:
        part.write_bytes(b"nonsense")
        code, _, err = ask(capfd, lake, "list")
    finally:
        part.write_bytes(whole)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "jobwatt lake check" in err
