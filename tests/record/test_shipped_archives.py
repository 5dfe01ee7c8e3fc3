"""The recordings that ship: each job in one archive, and all of them whole in one lake."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import polars as pl
import pytest

from app.demo import SHIPPED_ARCHIVES
from ingest.lake import Lake
from ingest.pipeline import IngestReport, ingest
from ingest.runner import SerialRunner
from tests.record.programs import load

pack = load("pack")


@pytest.fixture(scope="module")
def taken(tmp_path_factory) -> tuple[Lake, list[IngestReport]]:
    """All archives in one lake, the newest first, and what was reported of each."""
    root = tmp_path_factory.mktemp("shipped") / "lake"
    reports = [ingest(str(archive), root, runner=SerialRunner()) for archive in reversed(SHIPPED_ARCHIVES)]
    return Lake(root), reports


def test_no_job_id_stands_in_two_archives():
    counted = Counter(job_id for archive in SHIPPED_ARCHIVES for job_id in pack.read_ids(archive))
    assert {job_id: n for job_id, n in counted.items() if n > 1} == {}
    assert counted


def test_no_two_archives_were_drawn_from_one_seed():
    parameters = {path: pack.read_member(path, "job-parameters.csv") for path in SHIPPED_ARCHIVES}
    repeated = {(a.name, b.name): pack.count_repeated(parameters[a], b) for a, b in combinations(SHIPPED_ARCHIVES, 2)}
    assert {pair: n for pair, n in repeated.items() if n > 1} == {}  # one may be by chance


def test_all_archives_go_into_one_lake_with_nothing_refused_replaced_or_set_apart(taken):
    _, reports = taken
    for report in reports:
        assert (report.files_refused, report.files_replaced, report.rows_quarantined, report.partial) == (
            0,
            0,
            0,
            False,
        )


def test_every_job_has_its_log_row_and_its_samples_and_none_lies_outside_its_time(taken):
    lake, _ = taken
    jobs = lake.scan("jobs").select("job_id", "start_time", "end_time").collect()
    assert set(jobs["job_id"]) == {job_id for archive in SHIPPED_ARCHIVES for job_id in pack.read_ids(archive)}
    assert jobs["job_id"].is_unique().all()
    samples = lake.scan("gpu_samples").select("job_id", "time").collect()
    assert set(samples["job_id"]) == set(jobs["job_id"])
    for rows in (samples, lake.scan("cpu_samples").select("job_id", "time").collect()):
        placed = rows.join(jobs, on="job_id", how="left")
        inside = pl.col("time").is_between(pl.col("start_time"), pl.col("end_time"))
        assert placed.filter(~inside.fill_null(False))["job_id"].unique().to_list() == []
