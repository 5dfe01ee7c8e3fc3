from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from app.jobs_view import LIST_COLUMNS, GpuLine, ReasonLine, clusters_of, describe_job, list_jobs
from ingest.errors import LakeError
from ingest.schemas import TABLES

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def table(name: str, *rows: dict[str, object]) -> pl.LazyFrame:
    """Rows of one table of cluster a, as `Lake.scan` gives them; what is not said is null."""
    types = {column: dtype for column, dtype in TABLES[name].columns.items() if column in rows[0]}
    frame = pl.DataFrame(list(rows), schema_overrides=types)
    return TABLES[name].conform(frame).with_columns(cluster=pl.lit("a")).lazy()


def minutes_after(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


JOBS = table(
    "jobs",
    {"job_id": 1, "attempt": 0, "user": "ann", "state": "NODE_FAIL", "start_time": NOON, "end_time": minutes_after(1)},
    {
        "job_id": 1,
        "attempt": 1,
        "user": "ann",
        "state": "COMPLETED",
        "start_time": minutes_after(10),
        "end_time": minutes_after(70),
    },
    {
        "job_id": 2,
        "attempt": 0,
        "user": "bob",
        "state": "FAILED",
        "start_time": minutes_after(20),
        "end_time": minutes_after(21),
    },
    {"job_id": 3, "attempt": 0, "user": "bob", "state": "PENDING", "start_time": None, "end_time": None},
)
STATS = table(
    "job_stats",
    {
        "job_id": 1,
        "nodes": 1,
        "gpus": 2,
        "energy_j": 7_200_000.0,
        "power_mean_w": 1000.0,
        "power_max_w": 1500.0,
        "coverage": 1.0,
    },
    {
        "job_id": 9,
        "nodes": 1,
        "gpus": 1,
        "energy_j": 3_600.0,
        "power_mean_w": 60.0,
        "power_max_w": 61.0,
        "coverage": 0.5,
    },
)
LABELS = table("labels", {"job_id": 1, "label": "bert", "family": "BERT", "domain": "NLP"})


def listed(**wishes: object) -> pl.DataFrame:
    return list_jobs(JOBS, STATS, LABELS, **wishes).collect()


def test_each_job_is_listed_once_by_its_last_attempt():
    frame = listed(sort="job_id", descending=False)
    assert frame.columns == list(LIST_COLUMNS)
    assert frame["job_id"].to_list() == [1, 2, 3, 9]
    assert frame["state"].to_list() == ["COMPLETED", "FAILED", "PENDING", None]
    assert frame["run_s"].to_list() == [3600.0, 60.0, None, None]


def test_energy_is_shown_in_kilowatt_hours_and_a_job_without_samples_has_none():
    frame = listed(sort="job_id", descending=False)
    assert frame["energy_kwh"].to_list() == [pytest.approx(2.0), None, None, pytest.approx(0.001)]
    assert frame["gpus"].to_list() == [2, None, None, 1]
    assert frame["label"].to_list() == ["bert", None, None, None]


def test_the_list_is_narrowed_by_user_state_and_label():
    assert set(listed(user="bob")["job_id"]) == {2, 3}
    assert set(listed(state="failed")["job_id"]) == {2}
    assert set(listed(label="bert")["job_id"]) == {1}
    assert listed(user="ann", state="FAILED").height == 0


def test_the_newest_or_the_greatest_comes_first_and_the_unknown_last():
    assert listed()["job_id"].to_list() == [2, 1, 3, 9]
    assert listed(sort="energy_kwh")["job_id"].to_list() == [1, 9, 2, 3]
    assert listed(sort="coverage", descending=False)["job_id"].to_list() == [9, 1, 2, 3]


def test_a_column_that_is_not_listed_cannot_be_sorted_by():
    with pytest.raises(ValueError, match="sort is 'nonsense'; give one of cluster, job_id"):
        listed(sort="nonsense")


def test_a_job_of_one_cluster_is_not_joined_with_the_statistics_of_another():
    elsewhere = STATS.with_columns(cluster=pl.lit("b"))
    frame = list_jobs(JOBS, elsewhere, LABELS, sort="job_id", descending=False).collect()
    assert frame.select("cluster", "job_id", "energy_kwh").rows() == [
        ("a", 1, None),
        ("b", 1, pytest.approx(2.0)),
        ("a", 2, None),
        ("a", 3, None),
        ("b", 9, pytest.approx(0.001)),
    ]


def test_the_clusters_that_have_a_job_are_found_in_either_table():
    stats = pl.concat([STATS, STATS.with_columns(cluster=pl.lit("b"))])
    assert clusters_of(1, JOBS, stats) == ["a", "b"]
    assert clusters_of(3, JOBS, stats) == ["a"]
    assert clusters_of(9, JOBS, stats) == ["a", "b"]
    assert clusters_of(4, JOBS, stats) == []


def minute(job_id: int, gpu_index: int, *, gpu_util_mean_pct: float | None, memory_mib: int | None, **rest: object):
    """One row of the one-minute roll-up; the readings of utilisation are all or none of the samples."""
    return {
        "job_id": job_id,
        "node": "n1",
        "gpu_index": gpu_index,
        "n_gpu_util": 0 if gpu_util_mean_pct is None else rest["n"],
        "gpu_util_mean_pct": gpu_util_mean_pct,
        "memory_used_max_mib": memory_mib,
        **rest,
    }


TABLES_OF_A_LAKE = {
    "jobs": JOBS.with_columns(
        submit_time=pl.lit(minutes_after(-5)), eligible_time=pl.lit(minutes_after(-2)), exit_code=pl.lit(256)
    ),
    "job_stats": STATS.with_columns(gaps=pl.lit(3), longest_gap_s=pl.lit(2.5), samples=pl.lit(72000)),
    "labels": LABELS,
    "gpu_minutes": table(
        "gpu_minutes",
        minute(1, 0, n=600, n_power=600, power_mean_w=100.0, power_max_w=150.0, gpu_util_mean_pct=50.0, memory_mib=10),
        minute(1, 0, n=300, n_power=200, power_mean_w=500.0, power_max_w=550.0, gpu_util_mean_pct=None, memory_mib=30),
        minute(1, 1, n=10, n_power=0, power_mean_w=None, power_max_w=None, gpu_util_mean_pct=1.0, memory_mib=None),
        minute(9, 1, n=10, n_power=10, power_mean_w=60.0, power_max_w=60.0, gpu_util_mean_pct=1.0, memory_mib=None),
    ),
    "devices": table(
        "devices",
        {"node": "n1", "gpu_index": 0, "valid_from": NOON, "gpu_type": "v100"},
        {"node": "n1", "gpu_index": 0, "valid_from": minutes_after(5), "gpu_type": "h200"},
        {"node": "n2", "gpu_index": 1, "valid_from": NOON, "gpu_type": "a100"},
    ),
    "quality": table(
        "quality",
        {"file": "gpu/0001/1-n1.csv", "job_id": 1, "reason": "gap", "detail": "time", "count": 3},
        {"file": "gpu/0001/1-n2.csv", "job_id": 1, "reason": "gap", "detail": "time", "count": 4},
        {"file": "gpu/0001/9-n1.csv", "job_id": 9, "reason": "gap", "detail": "time", "count": 5},
        {"file": "gpu/0001/1-n1.csv", "job_id": 1, "reason": "bad_value", "detail": "", "count": 3},
        {"file": "gpu/0001/1-n1.csv", "job_id": 1, "reason": "out_of_order", "detail": "", "count": 2},
    ),
    "quarantine": table(
        "quarantine",
        {"file": "gpu/0001/1-n1.csv", "line": 7, "rows": 1, "table": "gpu_samples", "reason": "bad_value"},
        {"file": "gpu/0001/1-n1.csv", "line": 9, "rows": 2, "table": "gpu_samples", "reason": "bad_value"},
        {"file": "gpu/0011/11-n1.csv", "line": 7, "rows": 1, "table": "gpu_samples", "reason": "bad_value"},
        {"file": "1-x/slurm-log.csv", "line": 2, "rows": 1, "table": "jobs", "reason": "bad_value"},
    ),
}


def test_a_job_is_described_by_all_that_the_lake_knows_of_it():
    job = describe_job(1, "a", TABLES_OF_A_LAKE)
    assert (job.user, job.state, job.attempts, job.label) == ("ann", "COMPLETED", 2, "bert")
    assert (job.run_s, job.wait_s, job.exit_code) == (3600.0, 720.0, 256)
    assert (job.energy_j, job.energy_kwh, job.power_max_w) == (7_200_000.0, pytest.approx(2.0), 1500.0)
    assert (job.samples, job.gaps, job.longest_gap_s, job.coverage) == (72000, 3, 2.5, 1.0)


def test_the_gpus_of_a_job_have_means_weighed_by_samples_and_the_type_last_seen():
    used = describe_job(1, "a", TABLES_OF_A_LAKE).used
    assert used == (
        GpuLine("n1", 0, "h200", 900, 200.0, 550.0, 50.0, 30),  # (600 x 100 + 200 x 500) / 800 = 200
        GpuLine("n1", 1, None, 10, None, None, 1.0, None),
    )


def test_reasons_are_those_of_this_job_alone_and_a_refused_line_is_told_once():
    assert describe_job(1, "a", TABLES_OF_A_LAKE).reasons == (
        ReasonLine("quality", "gap", "time", 7),
        ReasonLine("quality", "out_of_order", "", 2),
        ReasonLine("quarantine", "bad_value", "gpu_samples", 3),
    )
    assert describe_job(2, "a", TABLES_OF_A_LAKE).reasons == ()


def test_a_job_of_which_there_are_only_samples_has_no_attempt():
    job = describe_job(9, "a", TABLES_OF_A_LAKE)
    assert (job.attempts, job.state, job.gpus, job.power_mean_w) == (0, None, 1, 60.0)


def test_a_job_that_is_not_there_is_named():
    with pytest.raises(LakeError, match="no job 4 in cluster a"):
        describe_job(4, "a", TABLES_OF_A_LAKE)
    with pytest.raises(LakeError, match="no job 1 in cluster b"):
        describe_job(1, "b", TABLES_OF_A_LAKE)
