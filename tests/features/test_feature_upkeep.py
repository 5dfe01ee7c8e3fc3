"""Small parts of features are merged, as small parts of samples are."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ingest.follow import Follower, FollowPlan
from ingest.lake import Lake
from ingest.maintenance import Upkeep, maintain
from tests import spool_files
from tests.features.lakes import gpu_name, job_file, make_lake, run_extract, variant
from tests.small_sources import snapshot, take, write
from tests.spool_files import gpu_cells, make_spool, write_segment

VARIANTS = [variant(), variant("covariance", place="slide")]


@pytest.fixture(autouse=True)
def one_series_a_task(monkeypatch):
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", 1)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A lake of the jobs 101 to 106, the last two too short, with a part for each and each variant."""
    made = make_lake(tmp_path, jobs=4)
    for job_id in (105, 106):
        write(tmp_path / "source", gpu_name(job_id), job_file(seconds=3.0))
    take(tmp_path / "source", made, cluster="one")
    for what in VARIANTS:
        run_extract(made, what)
    assert files(made) == (8, 12)
    return made


def files(lake: Path) -> tuple[int, int]:
    return len(Lake(lake).paths("features")), len(Lake(lake).paths("feature_series"))


def content(lake: Path) -> list[pl.DataFrame]:
    opened = Lake(lake)
    assert opened.check().problems == ()
    windows = [opened.scan_features(what.name) for what in VARIANTS]
    by = ["variant", "job_id"]
    return [rows.collect().sort(by, maintain_order=True) for rows in (*windows, opened.scan("feature_series"))]


def test_small_parts_of_a_variant_become_one_and_hold_the_same(lake):
    before = content(lake)
    assert maintain(lake, "one", compact_after=3) == Upkeep(20, 5)
    assert files(lake) == (2, 3)  # a pair for each variant, and the series without a window
    for found, expected in zip(content(lake), before, strict=True):
        assert_frame_equal(found, expected)
    for what in VARIANTS:
        assert run_extract(lake, what).is_repeated


def test_parts_that_are_few_or_large_stay_as_they_are(lake, monkeypatch):
    before = snapshot(lake)
    assert maintain(lake, "one", compact_after=4) == Upkeep()
    monkeypatch.setattr("ingest.feature_commit.SMALL_BYTES", 1)
    assert maintain(lake, "one", compact_after=1) == Upkeep()
    assert snapshot(lake) == before


def test_a_merged_part_is_not_larger_than_it_should(lake, monkeypatch):
    before = content(lake)
    monkeypatch.setattr(
        "ingest.feature_commit.MERGED_BYTES", sum(p.stat().st_size for p in lake.rglob("features/*/*/*")) // 4
    )
    maintain(lake, "one", compact_after=3)
    assert 2 < files(lake)[0] < 8
    for found, expected in zip(content(lake), before, strict=True):
        assert_frame_equal(found, expected)


def test_what_an_ingest_replaces_goes_from_a_merged_part_too(lake):
    maintain(lake, "one", compact_after=1)
    write(lake.parent / "source", gpu_name(102), job_file(watts=500.0, seconds=11.0))
    take(lake.parent / "source", lake, cluster="one")
    windows, slid, series = content(lake)
    assert windows["job_id"].to_list() == slid["job_id"].unique().sort().to_list() == [101, 103, 104]
    assert series["job_id"].unique().sort().to_list() == [101, 103, 104, 105, 106]
    report = run_extract(lake)
    assert (report.rows, report.windows) == (1, 4)


def test_a_follower_merges_them(tmp_path):
    spool = make_spool(tmp_path / "spool")
    clock = iter(range(100, 10_000, 100))
    plan = FollowPlan(spool, tmp_path / "lake", compact_after=3)
    follower = Follower(plan, wall=lambda: spool_files.START_S + 100.0, monotonic=lambda: float(next(clock)))
    rows = [gpu_cells(i / 2, 7 + gpu, gpu) for gpu in range(4) for i in range(20)]
    write_segment(spool, "gpu", 1, rows)
    follower.round()
    run_extract(tmp_path / "lake")
    assert files(tmp_path / "lake") == (4, 4)
    follower.round()
    assert files(tmp_path / "lake") == (1, 1)
    assert Lake(tmp_path / "lake").check().problems == ()
    assert sorted(Lake(tmp_path / "lake").scan_features(variant().name).collect()["job_id"]) == [7, 8, 9, 10]
