from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.small_sources import LOG_HEADER as LOG
from tests.small_sources import Taken, lines, log_row, take, take_twice, write

SAMPLES = Path(__file__).parents[1] / "samples" / "slurm"
HEADER = "JobIDRaw|Cluster|State|ExitCode|Submit|Start|End|AllocTRES|JobName"


def job(
    job_id: object, submit: int = 1_700_000_000, state: str = "COMPLETED", cluster: str = "c", name: str = "n"
) -> str:
    return f"{job_id}|{cluster}|{state}|0:0|{submit}|{submit + 5}|{submit + 9}|cpu=1,gres/gpu:v100=2|{name}"


def file(*rows: str) -> str:
    return lines(HEADER, *rows)


def jobs(taken: Taken) -> list[tuple[int, int, str]]:
    return taken.rows("jobs", "job_id", "attempt", "state")


def test_what_a_real_slurm_printed_becomes_jobs_as_text_and_as_json(tmp_path):
    text = take_twice(SAMPLES / "22.05-ours.sacct.txt", tmp_path / "text")
    as_json = take_twice(SAMPLES / "22.05.sacct.json", tmp_path / "json")
    assert text.report.cluster == "slurm"
    drop = ["exit_code", "derived_exit_code", "flags"]
    found, other = (each.lake.scan("jobs").drop(drop).collect().sort("job_id", "attempt") for each in (text, as_json))
    assert found.equals(other)
    assert found.filter(pl.col("job_id") == 6)["attempt"].to_list() == [0, 1]
    assert text.counted()["requeued", ""] == 1


@pytest.mark.parametrize("name", ["sacct.txt", "x.sacct.txt", "jobs/c-2026-11-24.sacct.txt", "a/jobs/c.sacct.txt"])
def test_a_file_is_known_for_sacct_s_by_its_name_alone_or_in_a_folder_of_jobs(name, tmp_path):
    write(tmp_path, f"in/{name}", file(job(1)))
    assert jobs(take(tmp_path / "in", tmp_path / "folder")) == [(1, 0, "COMPLETED")]
    assert jobs(take(tmp_path / "in" / name, tmp_path / "alone")) == [(1, 0, "COMPLETED")]


def test_a_compressed_file_is_read_too(tmp_path):
    write(tmp_path, "in/sacct.txt.gz", gzip.compress(file(job(1)).encode()))
    assert jobs(take_twice(tmp_path / "in", tmp_path / "lake")) == [(1, 0, "COMPLETED")]


def test_accounting_and_samples_of_one_source_meet_in_one_cluster(tmp_path):
    write(tmp_path, "in/gpu/0001/101-n1.csv", "timestamp,gpu_index,power_draw_W\n1600000000,0,100\n1600000001,0,100\n")
    write(tmp_path, "in/jobs/c.sacct.txt", file(job(101, 1_599_999_990)))
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("job_stats", "job_id", "samples") == [(101, 2)]
    assert ("job_without_record", "") not in taken.counted()
    assert taken.rows("devices", "gpu_type") == [("v100",)]


def test_bad_rows_stand_in_quarantine_with_line_reason_and_text(tmp_path):
    write(tmp_path, "in/sacct.txt", file(job(1), "4|c|COMPLETED", job(2, name="a|b"), job(3).replace("COMPL", "EXPL")))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [row[0] for row in jobs(taken)] == [1, 2]
    assert [(line, reason) for _, line, reason, _ in taken.rejected()] == [(3, "too_few_fields"), (5, "wrong_type")]
    assert taken.rejected()[0][3] == "4|c|COMPLETED"
    assert taken.report.partial


def test_a_last_line_that_does_not_end_is_not_believed(tmp_path):
    write(tmp_path, "in/sacct.txt", file(job(1), job(2))[:-3])
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert [row[0] for row in jobs(taken)] == [1]
    assert [reason for _, _, reason, _ in taken.rejected()] == ["truncated"]


def test_a_row_of_another_cluster_is_set_aside(tmp_path):
    write(tmp_path, "in/sacct.txt", file(job(1), job(1, 1_700_000_100, cluster="d")))
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert [row[0] for row in jobs(taken)] == [1]
    assert [reason for _, _, reason, _ in taken.rejected()] == ["other_cluster"]


def test_attempts_are_numbered_by_their_submission_and_a_row_twice_is_taken_once(tmp_path):
    late, early = job(7, 1_700_000_500), job(7, 1_700_000_000, "REQUEUED")
    write(tmp_path, "in/sacct.txt", file(late, early, late, HEADER, job(8)))
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert jobs(taken) == [(7, 0, "PENDING"), (7, 1, "COMPLETED"), (8, 0, "COMPLETED")]
    assert [reason for _, _, reason, _ in taken.rejected()] == ["repeated_row"]
    assert taken.report.rows_in == 4


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("sacct.txt", "", "empty_file"),
        ("sacct.txt", "State|Submit\nx|1\n", "missing_column"),
        ("sacct.json", "", "empty_file"),
        ("sacct.json", '{"jobs": [{"job_id": 1', "truncated"),
        ("sacct.json", '{"jobs": null}', "truncated"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_a_reason(name, content, reason, tmp_path):
    write(tmp_path, f"in/{name}", content)
    write(tmp_path, "in/good.sacct.txt", file(job(1)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [(file, why) for file, why, _ in taken.refused()] == [(name, reason)]
    assert jobs(taken) == [(1, 0, "COMPLETED")]


# -- snapshots that are rewritten --------------------------------------------------------------------------------------


def test_a_rewritten_snapshot_replaces_its_rows_even_if_it_became_shorter(tmp_path):
    write(tmp_path, "in/jobs/c.sacct.txt", file(job(1, state="RUNNING", name="long" * 50), job(2)))
    take(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, "in/jobs/c.sacct.txt", file(job(1), job(2)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert jobs(taken) == [(1, 0, "COMPLETED"), (2, 0, "COMPLETED")]
    assert taken.report.files_refused == 0


def test_a_snapshot_that_lost_a_job_is_refused_and_the_lake_keeps_it(tmp_path):
    write(tmp_path, "in/jobs/c.sacct.txt", file(job(1), job(2)))
    take(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, "in/jobs/c.sacct.txt", file(job(1), *(job(n) for n in range(10, 20))))
    write(tmp_path, "in/jobs/d.sacct.txt", file(job(3)))
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert [row[0] for row in jobs(taken)] == [1, 2, 3]
    assert [(name, reason) for name, reason, _ in taken.refused()] == [("jobs/c.sacct.txt", "keys_lost")]
    (detail,) = [each for (each,) in taken.rows("quarantine", "detail") if each]
    assert detail.startswith("1 of 2 jobs are not in it any more, as 2; --force drops them")
    forced = take(tmp_path / "in", tmp_path / "lake", force=True)
    assert [row[0] for row in jobs(forced)] == [1, 3, *range(10, 20)]


def test_a_job_of_two_files_is_kept_once_whenever_they_come(tmp_path):
    write(tmp_path, "both/a.sacct.txt", file(job(1), job(2)))
    write(tmp_path, "both/b.sacct.txt", file(job(2), job(3)))
    together = take_twice(tmp_path / "both", tmp_path / "together")
    write(tmp_path, "one/a.sacct.txt", file(job(1), job(2)))
    write(tmp_path, "two/b.sacct.txt", file(job(2), job(3)))
    take(tmp_path / "one", tmp_path / "apart")
    apart = take_twice(tmp_path / "two", tmp_path / "apart")
    for taken in (together, apart):
        assert [row[0] for row in jobs(taken)] == [1, 2, 3]
        assert [(name, reason) for name, _, reason, _ in taken.rejected()] == [("b.sacct.txt", "repeated_row")]
        assert taken.counted()["repeated_row", "in a.sacct.txt"] == 1


def test_a_job_of_the_scheduler_s_log_is_not_taken_again_from_sacct(tmp_path):
    write(tmp_path, "in/slurm-log.csv", lines(LOG, log_row(101)))
    write(tmp_path, "in/sacct.txt", file(job(101), job(102)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [row[0] for row in jobs(taken)] == [101, 102]
    assert [name for name, *_ in taken.rejected()] == ["sacct.txt"]


def test_a_long_text_is_read_in_pieces_and_no_row_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.accounting.PIECE_BYTES", 100)
    monkeypatch.setattr("ingest.accounting._HEAD_BYTES", 150)
    rows = [job(n, 1_700_000_000 + n, name="a\nb|c" * (n % 4)) for n in range(1, 60)]
    write(tmp_path, "in/sacct.txt", file(*rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [row[0] for row in jobs(taken)] == list(range(1, 60))


def test_a_spool_s_snapshots_are_ingested_again_without_a_change(tmp_path):
    (tmp_path / "in" / "jobs").mkdir(parents=True)
    shutil.copy(SAMPLES / "22.05-ours.sacct.txt", tmp_path / "in" / "jobs" / "test-2026-11-24.sacct.txt")
    write(tmp_path, "in/spool.json", json.dumps({"format": "jobwatt-spool", "version": 1}))
    assert take_twice(tmp_path / "in", tmp_path / "lake").report.rows_out == 20 + 2
