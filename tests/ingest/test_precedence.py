"""One GPU that Prometheus and its node's collector tell of: it is there once, whichever comes first."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ingest.follow import Follower, FollowPlan
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.precedence import find_doubled
from ingest.reconcile import SEPARATOR
from ingest.runner import SerialRunner
from tests.benchmarks.measure import JOBWATT, run_process
from tests.lakes import in_order
from tests.spool_files import START_S, gpu_cells, make_spool, write_named, write_segment

SNAPSHOT = "gpu/prometheus-a-dcgm-20261124T23Z.csv"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return make_spool(tmp_path / "spool")


def follower(spool: Path, lake: str = "lake") -> Follower:
    return Follower(FollowPlan(spool, spool.parent / lake), wall=lambda: START_S + 1000)


def collected(spool: Path, number: int, begin: int, end: int, job_id: int | None = 7) -> None:
    """Write a segment of a collector that reads every second."""
    write_segment(spool, "gpu", number, [gpu_cells(s, job_id) for s in range(begin, end)])


def scraped(spool: Path, until: int, job_id: int | None = 7, name: str = SNAPSHOT) -> None:
    """Write a snapshot of scrapes every 15 s, a bit beside the full second."""
    write_named(spool, name, [gpu_cells(s + 0.03, job_id) for s in range(0, until, 15)])


def read(lake: Path) -> list[tuple[int | None, float]]:
    """Return job and time of every sample, after a check of the lake."""
    opened = Lake(lake)
    assert opened.check().problems == ()
    rows = opened.scan("gpu_samples").select("job_id", "time").collect().sort("time")
    return [(job, round(time.timestamp() - START_S, 3)) for job, time in rows.iter_rows()]


def test_a_snapshot_that_grows_beside_a_collector_is_taken_every_round(spool):
    """Companions of removed segments would be missing for ever."""
    one = follower(spool)
    for number in range(1, 5):
        collected(spool, number, 20 * number - 20, 20 * number)
        scraped(spool, 20 * number)
        done = one.round()
        assert (done.problem, done.refused, done.rows) == ("", 0, 20)
    assert read(spool.parent / "lake") == [(7, s) for s in range(80)]


def test_rows_that_gave_way_are_counted_and_stay_in_their_file(spool):
    collected(spool, 1, 0, 20)
    scraped(spool, 60)
    report = ingest(str(spool), spool.parent / "lake", runner=SerialRunner())
    (record,) = (r for r in report.records if r.name == SNAPSHOT)
    assert (record.rows_in, record.rows_out, record.rows_merged, record.rows_quarantined) == (4, 2, 2, 0)
    assert report.reasons["collector_has_them"] == 2
    assert not report.partial
    assert len((spool / SNAPSHOT).read_text().splitlines()) == 5


def test_the_time_without_a_collector_is_filled_and_nothing_overlaps(spool):
    collected(spool, 1, 0, 20)
    collected(spool, 2, 50, 70)
    scraped(spool, 120)
    one = follower(spool)
    assert one.round().problem == ""
    filled = [30.03, 45.03, 75.03, 90.03, 105.03]
    expected = sorted([*range(20), *range(50, 70), *filled])
    assert read(spool.parent / "lake") == [(7, s) for s in expected]
    energy = Lake(spool.parent / "lake").scan("job_stats").select("energy_j", "energy_counter_j").collect()
    assert energy["energy_counter_j"].item() == pytest.approx(10_503, abs=1)  # 100 W from 0 to 105.03 s, once


@pytest.mark.parametrize("job_id", [7, None])
def test_whichever_comes_first_the_lake_is_the_same(job_id, spool, tmp_path):
    """Without a job in the exporter's labels, a GPU's energy would be there with and without its job."""
    lakes = []
    for number, order in enumerate(permutations(["early", "late", "scraped"])):
        folder = make_spool(tmp_path / f"spool-{number}")
        one = follower(folder, f"lake-{number}")
        for what in order:
            if what == "scraped":
                scraped(folder, 120, job_id)
            else:
                collected(folder, *((1, 0, 20) if what == "early" else (2, 50, 70)))
            assert one.round().problem == ""
        lakes.append(tmp_path / f"lake-{number}")
    fills = [(job_id, s) for s in (30.03, 45.03, 75.03, 90.03, 105.03)]
    expected = sorted([*((7, s) for s in (*range(20), *range(50, 70))), *fills], key=lambda row: row[1])
    for table in ("gpu_samples", "gpu_minutes", "job_stats"):
        frames = [in_order(Lake(lake).scan(table).collect()) for lake in lakes]
        for frame in frames[1:]:
            assert_frame_equal(frame, frames[0])
    for lake in lakes:
        assert read(lake) == expected
        known = Lake(lake).inputs().filter(pl.col("name") == SNAPSHOT).select("rows_in", "rows_out", "rows_merged")
        assert known.rows() == [(8, 5, 3)]


def test_a_collector_in_another_spool_goes_before_too(spool, tmp_path):
    """A site follows one spool of Prometheus, and one of each node; the snapshot is not at hand then."""
    other = make_spool(tmp_path / "node")
    scraped(spool, 60)
    assert follower(spool).round().problem == ""
    collected(other, 1, 0, 40)
    assert follower(other).round().problem == ""
    assert read(tmp_path / "lake") == [*((7, s) for s in range(40)), (7, 45.03)]
    scraped(spool, 90)
    assert follower(spool).round().refused == 0
    assert read(tmp_path / "lake")[40:] == [(7, s) for s in (45.03, 60.03, 75.03)]


def test_a_gpu_that_two_collectors_tell_of_at_one_time_is_counted(spool, tmp_path):
    """A labelled run beside a service: which of the two is believed cannot be told, but it is said."""
    for number in (1, 2):
        collected(spool, number, 20 * number - 20, 20 * number, None)
    alone = ingest(str(spool), tmp_path / "lake", runner=SerialRunner())
    assert "two_collectors" not in alone.reasons
    labelled = make_spool(tmp_path / "labelled")
    rows = [gpu_cells(s + 0.5, 8) for s in range(10, 30)]
    write_named(labelled, "gpu/n1-20261124T234318.500000Z-000001.csv", rows)
    report = ingest(str(labelled), tmp_path / "lake", runner=SerialRunner())
    assert report.reasons["two_collectors"] == 20
    assert not report.partial
    apart = ingest(str(labelled), tmp_path / "apart", cluster="runs", runner=SerialRunner())
    assert "two_collectors" not in apart.reasons


def test_a_run_that_begins_beside_a_service_whose_segments_are_forgotten_is_counted(spool, tmp_path):
    one = follower(spool)
    for number in range(1, 4):
        collected(spool, number, 20 * number - 20, 20 * number, None)
        assert one.round().problem == ""
    labelled = make_spool(tmp_path / "labelled")
    first, second = (f"gpu/n1-20261124T234318.500000Z-00000{number}.csv" for number in (2, 7))
    write_named(labelled, first, [gpu_cells(s + 0.5, 8) for s in range(5, 15)])
    assert ingest(str(labelled), tmp_path / "lake", runner=SerialRunner()).reasons["two_collectors"] == 10
    write_named(labelled, second, [gpu_cells(s + 0.5, 8) for s in range(15, 25)])
    assert ingest(str(labelled), tmp_path / "lake", runner=SerialRunner()).reasons["two_collectors"] == 10


def test_a_service_that_is_followed_is_no_other_run_than_its_forgotten_segments(spool):
    one = follower(spool)
    for number in range(1, 6):
        collected(spool, number, 20 * number - 20, 20 * number, None)
        assert one.round().problem == ""
    quality = Lake(spool.parent / "lake").scan("quality").filter(pl.col("reason") == "two_collectors")
    assert quality.collect().is_empty()


@pytest.mark.parametrize("order", list(permutations(["service", "run"])))
def test_a_run_in_a_gap_of_a_service_is_not_counted_whichever_comes_first(tmp_path, order):
    service, run = (make_spool(tmp_path / name) for name in ("service", "run"))
    write_segment(service, "gpu", 1, [gpu_cells(s, None) for s in (*range(20), *range(100, 120))])
    write_named(run, "gpu/n1-20261124T234318.500000Z-000001.csv", [gpu_cells(s + 0.5, 8) for s in range(40, 80)])
    for name in order:
        report = ingest(str(tmp_path / name), tmp_path / "lake", runner=SerialRunner())
        assert "two_collectors" not in report.reasons


def test_a_piece_that_meets_another_run_before_and_after_its_gap_is_counted_once(tmp_path):
    service, run = (make_spool(tmp_path / name) for name in ("service", "run"))
    collected(service, 1, 0, 120, None)
    rows = [gpu_cells(s + 0.5, 8) for s in (*range(10, 20), *range(60, 70))]
    write_named(run, "gpu/n1-20261124T234318.500000Z-000001.csv", rows)
    ingest(str(service), tmp_path / "lake", runner=SerialRunner())
    assert ingest(str(run), tmp_path / "lake", runner=SerialRunner()).reasons["two_collectors"] == 20


def pieces(*told: tuple[int, int, str, int, int]) -> pl.DataFrame:
    """Pieces of rows, GPU, inputs, first and last second."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        [
            {
                "part": "p", "row_start": number * 1000, "rows": rows, "gaps": 0, "node": "n", "gpu_index": gpu,
                "input": entry, "first_time": start + timedelta(seconds=a), "last_time": start + timedelta(seconds=b),
            }
            for number, (rows, gpu, entry, a, b) in enumerate(told)
        ]
    )  # fmt: skip


def test_rows_of_all_series_of_a_segment_are_counted_whichever_files_they_are_joined_with():
    known = pieces((100, 0, "gpu/x-1.csv", 0, 100), (100, 1, "gpu/x-1.csv", 0, 100))
    come = pieces((50, 0, "gpu/y-1.csv", 10, 60), (70, 1, SEPARATOR.join(["gpu/y-1.csv", "gpu/y-2.csv"]), 10, 80))
    assert find_doubled(come, known) == {("gpu/y-1.csv", None, "two_collectors", ""): 120}


def test_a_collector_that_is_started_again_is_one_after_the_other(spool, tmp_path):
    collected(spool, 1, 0, 20)
    write_named(spool, "gpu/n1-20261124T234330.000000Z-000001.csv", [gpu_cells(s, 7) for s in range(21, 40)])
    report = ingest(str(spool), tmp_path / "lake", runner=SerialRunner())
    assert "two_collectors" not in report.reasons


def test_a_gap_inside_a_segment_is_filled_by_what_was_scraped(spool):
    one = follower(spool)
    write_segment(spool, "gpu", 1, [gpu_cells(s, 7) for s in (*range(20), *range(100, 120))])
    scraped(spool, 120)
    one.round()
    assert [s for _, s in read(spool.parent / "lake") if 19 < s < 100] == [30.03, 45.03, 60.03, 75.03, 90.03]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_snapshot_is_cut_a_few_rows_at_a_time_as_it_is_at_once(spool, tmp_path, monkeypatch, rows):
    lakes = []
    for number in range(2):
        if number:
            monkeypatch.setattr("ingest.precedence.CUT_ROWS", rows)
            monkeypatch.setattr("ingest.parts.FRAME_ROWS", 2)
        folder = make_spool(tmp_path / f"spool-{number}")
        scraped(folder, 240)
        one = follower(folder, f"lake-{number}")
        assert one.round().problem == ""
        for segment, begin in enumerate((20, 65, 100)):
            collected(folder, segment + 1, begin, begin + 20)
        assert one.round().problem == ""
        read(tmp_path / f"lake-{number}")
        lakes.append(Lake(tmp_path / f"lake-{number}"))
    for table in ("gpu_samples", "gpu_minutes", "job_stats"):
        whole, few = (in_order(lake.scan(table).collect()) for lake in lakes)
        assert whole.height > 0
        assert_frame_equal(few, whole)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_snapshots_that_give_way(tmp_path):
    """All are in one part of the lake."""
    rss_mib = []
    for hours in (1, 48):
        spool, lake = make_spool(tmp_path / f"spool-{hours}"), tmp_path / f"lake-{hours}"
        for hour in range(hours):
            seconds = range(3600 * hour, 3600 * (hour + 1))
            rows = (gpu_cells(s + 0.03, 7, gpu) for gpu in range(4) for s in seconds)
            write_named(spool, f"gpu/prometheus-a-dcgm-202611{1 + hour // 24:02d}T{hour % 24:02d}Z.csv", rows)
        options = ["--lake", str(lake), "--workers", "1", "--format", "json"]
        command = [str(JOBWATT), "lake", "ingest", str(spool), *options]
        assert json.loads(run_process(command).output)["rows_out"] == 4 * 3600 * hours
        for hour in range(hours):
            collected(spool, 1 + hour, 3600 * hour, 3600 * hour + 10)
        run = run_process(command, watch_memory=True)
        assert json.loads(run.output)["reasons"]["collector_has_them"] == 9 * hours
        rss_mib.append(run.rss_mib)
    assert rss_mib[1] < rss_mib[0] + 80, rss_mib


def test_two_servers_that_scrape_one_gpu_both_give_way(spool, tmp_path):
    scraped(spool, 60)
    scraped(spool, 60, name="gpu/prometheus-b-dcgm-20261124T23Z.csv")
    write_named(spool, SNAPSHOT, [gpu_cells(s + 0.5, 7) for s in range(0, 60, 15)])
    one = follower(spool)
    assert one.round().problem == ""
    collected(spool, 1, 0, 20)
    assert one.round().problem == ""
    assert read(tmp_path / "lake") == [*((7, s) for s in range(20)), *((7, s) for s in (30.03, 30.5, 45.03, 45.5))]
    sums = (
        Lake(tmp_path / "lake").inputs().filter(pl.col("name").str.starts_with("gpu/prometheus")).select("rows_merged")
    )
    assert sums.sum().item() == 4
    write_named(spool, SNAPSHOT, [gpu_cells(s + 0.5, 7) for s in range(0, 75, 15)])
    assert one.round().refused == 0
    assert read(tmp_path / "lake")[-1] == (7, 60.5)


def test_many_runs_one_after_another_are_looked_through_in_little_time():
    runs = 300
    start = pl.datetime_range(datetime(2026, 1, 1), datetime(2026, 3, 1), "30m", time_zone="UTC", eager=True)[:runs]
    pieces = pl.DataFrame(
        {
            "part": "p", "row_start": range(runs), "rows": 1, "gaps": 0, "node": "n", "gpu_index": 0,
            "input": [f"gpu/run{i:05d}-0001.csv" for i in range(runs)],
            "first_time": start, "last_time": start + timedelta(minutes=29),
        }
    )  # fmt: skip
    assert find_doubled(pieces, pieces.clear()) == {}
    later = pieces.with_columns(pl.col("first_time", "last_time") + pl.duration(minutes=5), input=pl.lit("gpu/x-1.csv"))
    assert sum(find_doubled(later[:7], pieces).values()) == 7
