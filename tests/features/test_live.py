from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest

from features.live import live_features
from features.statistical import statistics
from features.windows import CHALLENGE_CHANNELS
from ingest.errors import LakeError
from ingest.follow import Follower, FollowPlan
from ingest.lake import Lake
from ingest.synthetic import make_archive
from tests.features.lakes import gpu_name, make_lake, variant
from tests.small_sources import LOG_HEADER, START_S, gpu_file, gpu_row, lines, log_row, take, write
from tests.spool_files import START_S as SPOOL_START_S
from tests.spool_files import gpu_cells, make_spool, write_segment

NOW_S = START_S + 11.0
"""A second after the newest sample of the made-up jobs."""


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return make_lake(tmp_path)


def test_the_window_is_made_of_the_newest_samples(lake):
    found = live_features(lake, variant(), now_s=NOW_S)
    assert found.rows["job_id"].sort().to_list() == [101, 102, 103]
    assert found.rows["age_s"].to_list() == [1.0] * 3
    newest = Lake(lake).read_series(102, ["time", *CHALLENGE_CHANNELS]).tail(8)
    row = found.rows.filter(pl.col("job_id") == 102)
    assert row["window_start"].item() == newest["time"][0]
    expected = statistics(newest.select(CHALLENGE_CHANNELS).to_numpy().T[None].astype("float32"))
    assert row["power_w__maximum"].item() == newest["power_w"].max()
    assert row.select(pl.col("^.*__.*$")).row(0) == tuple(expected[0].tolist())


def test_a_job_that_ended_or_has_no_sample_of_late_does_not_run(lake):
    log = lines(LOG_HEADER, log_row(101, time_end=START_S + 10), log_row(102, time_end=0))
    write(lake.parent / "source", "slurm-log.csv", log)
    take(lake.parent / "source", lake, cluster="one")
    assert live_features(lake, variant(), now_s=NOW_S).rows["job_id"].sort().to_list() == [102, 103]
    assert live_features(lake, variant(), now_s=NOW_S + 100, active_s=60).rows.height == 0


def test_too_few_samples_are_told_of_not_filled_up(lake):
    write(lake.parent / "source", gpu_name(109), gpu_file(gpu_row(9.0), gpu_row(10.0)))
    take(lake.parent / "source", lake, cluster="one")
    found = live_features(lake, variant(), now_s=NOW_S)
    assert 109 not in found.rows["job_id"].to_list()
    assert found.short.rows() == [("one", 109, "n1", 0, 2, "too_few_samples")]


def test_an_even_grid_is_refused_since_no_reading_comes_after_the_newest(lake):
    with pytest.raises(ValueError, match="has an even grid, which needs a reading after the window"):
        live_features(lake, variant(max_gap_s=1.0, even=True), now_s=NOW_S)


def test_no_job_at_all_is_an_empty_table_with_all_columns(lake):
    found = live_features(lake, variant("job"), now_s=NOW_S + 1e6)
    assert found.rows.height == found.short.height == 0
    assert {"job_id", "power_w__phases__step_50", "load__mean"} <= set(found.rows.columns)


def test_what_a_follower_took_a_round_ago_is_described_with_its_context(tmp_path):
    spool = make_spool(tmp_path / "spool")
    follower = Follower(FollowPlan(spool, tmp_path / "lake"), wall=lambda: SPOOL_START_S + 20.0)
    for number in range(3):
        rows = [gpu_cells(number * 4 + i / 2, 7, power_draw_W=100.0 + number) for i in range(8)]
        write_segment(spool, "gpu", number + 1, rows)
        follower.round()
    found = live_features(tmp_path / "lake", variant("job"), now_s=SPOOL_START_S + 12.5)
    assert found.rows["age_s"].to_list() == [1.0]
    assert found.rows["power_w__phases__step_50"].to_list() == [1.0]
    assert found.rows["load__mean"].to_list() == [None]


def test_a_lake_without_samples_is_told_so(tmp_path):
    write(tmp_path / "source", "slurm-log.csv", lines(LOG_HEADER, log_row()))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    with pytest.raises(LakeError, match="has no GPU samples; follow a spool into it"):
        live_features(tmp_path / "lake", variant(), now_s=NOW_S)


@pytest.mark.slow
def test_a_lake_of_hundreds_of_jobs_is_answered_in_a_moment(tmp_path):
    make_archive(tmp_path / "old", rng=1, n_jobs=300, seconds_per_job=60.0, node_data=False, cpu_files=False)
    take(tmp_path / "old", tmp_path / "lake", cluster="one")
    for job_id in range(101, 121):
        write(tmp_path / "new", gpu_name(job_id), gpu_file(*[gpu_row(1e8 + i / 2) for i in range(40)]))
    take(tmp_path / "new", tmp_path / "lake", cluster="one")
    began_s = time.perf_counter()
    found = live_features(tmp_path / "lake", variant(), now_s=START_S + 1e8 + 20)
    assert found.rows.height == 20
    assert time.perf_counter() - began_s < 2.0
