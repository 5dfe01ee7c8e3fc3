"""Requeued jobs of which the log has the later attempt first."""

from __future__ import annotations

import polars as pl
import pytest

from tests.small_sources import LOG_HEADER, START_S, gpu_file, gpu_row, lines, log_row, take_twice, write


def attempts_of(taken, job_id: int) -> list[tuple[int, str]]:
    found = taken.lake.scan("jobs").filter(pl.col("job_id") == job_id).sort("attempt").collect()
    return found.select("attempt", "partition").rows()


def attempt(job_id: int, name: str, submit_s: object, start_s: object = 0) -> str:
    return log_row(job_id, partition=name, time_submit=submit_s, time_start=start_s, time_end=START_S + 9999)


@pytest.mark.parametrize("pieces", ["one piece", "many pieces"])
def test_attempts_are_numbered_by_submission_then_start_then_the_log(pieces, tmp_path, monkeypatch):
    if pieces == "many pieces":
        for name in ("ingest.scan.CHUNK_BYTES", "ingest.scan.PIECE_BYTES", "ingest.rows.BATCH_BYTES"):
            monkeypatch.setattr(name, 400)
    rows = [
        attempt(1, "second", START_S + 100, START_S + 110),
        attempt(2, "later start", START_S, START_S + 50),
        attempt(3, "first in the log", START_S, START_S + 5),
        attempt(4, "alone", START_S),
        *[attempt(1000 + i, "alone", START_S) for i in range(20)],
        attempt(3, "second in the log", START_S, START_S + 5) + "x",  # another job type, the same times
        attempt(2, "earlier start", START_S, START_S + 20),
        attempt(1, "without times", 0, 0),
        attempt(1, "first", START_S, START_S + 10),
    ]
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, *rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert attempts_of(taken, 1) == [(0, "first"), (1, "second"), (2, "without times")]
    assert attempts_of(taken, 2) == [(0, "earlier start"), (1, "later start")]
    assert attempts_of(taken, 3) == [(0, "first in the log"), (1, "second in the log")]
    assert attempts_of(taken, 4) == [(0, "alone")]
    assert (len(taken.lake.paths("jobs")) > 1) == (pieces == "many pieces")


def test_the_last_attempt_is_the_one_whose_run_time_coverage_is_measured_by(tmp_path):
    later = log_row(101, tres_alloc="1002=1", time_submit=START_S, time_start=START_S, time_end=START_S + 10)
    earlier = log_row(
        101, tres_alloc="1002=1", time_submit=START_S - 90, time_start=START_S - 80, time_end=START_S - 60
    )
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, later, earlier))
    write(tmp_path, "in/gpu/0001/101-n1.csv", gpu_file(*[gpu_row(i) for i in range(11)]))
    assert take_twice(tmp_path / "in", tmp_path / "lake").rows("job_stats", "coverage") == [(1.0,)]
