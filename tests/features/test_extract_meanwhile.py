"""An extraction while others write the lake: only what rests on what changed is made again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ingest.follow import Follower, FollowPlan
from ingest.lake import Lake
from ingest.maintenance import maintain
from ingest.runner import SerialRunner
from tests import spool_files
from tests.features.lakes import make_lake, run_extract, variant
from tests.small_sources import NODE_HEADER, START_S, lines, take, write
from tests.spool_files import gpu_cells, make_spool, node_cells, process_cells, write_segment


@pytest.fixture(autouse=True)
def one_series_a_task(monkeypatch):
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", 1)


class After(SerialRunner):
    """Does something to the lake after every so many tasks, but not more often than told, and counts the tasks."""

    def __init__(self, act, every: int, times: int = 1) -> None:
        self.act, self.every, self.times, self.tasks = act, every, times, 0

    def map(self, task, specs):
        for spec in specs:
            done = task(spec)
            self.tasks += 1
            if self.tasks % self.every == 0 and self.tasks <= self.every * self.times:
                self.act()
            yield done


def node_file(seconds: float, load: float = 1.5, node: str = "n1") -> str:
    return lines(NODE_HEADER, f"0,{node},{START_S + seconds},0:3|,0.1,{load},300000000,7")


def bring_nodes(lake: Path, number: int, seconds: float, **values: object) -> None:
    source = lake.parent / f"nodes-{number}"
    write(source, "node-data.csv", node_file(seconds, **values))
    take(source, lake, cluster="one")


def test_node_samples_of_another_time_throw_nothing_away(tmp_path):
    lake = make_lake(tmp_path, jobs=4)
    times = iter(range(10))
    runner = After(lambda: bring_nodes(lake, number := next(times), 1e7 + 300 * number), every=2, times=2)
    report = run_extract(lake, variant("job"), runner=runner)
    assert (report.windows, report.series_done, report.series_changed, runner.tasks) == (4, 4, 0, 4)


@pytest.mark.parametrize(("seconds", "tasks"), [(310 - 1, 8), (310 + 1, 4)])
def test_node_samples_up_to_the_margin_after_a_series_have_it_made_again(tmp_path, seconds, tasks):
    """The series end after 10 s, and context is looked for up to 300 s later; all four are planned before."""
    lake = make_lake(tmp_path, jobs=4)
    runner = After(lambda: bring_nodes(lake, 0, seconds), every=2)
    report = run_extract(lake, variant("job"), runner=runner)
    assert (report.windows, report.series_changed) == (4, 0)
    assert runner.tasks == tasks


def test_where_an_older_index_has_no_times_of_node_samples_all_that_waits_is_made_again(tmp_path, monkeypatch):
    """The first of four series is in the lake by then, and an ingest removes by the times in the parts."""

    def plain_pieces(frame, starts):
        return pl.DataFrame({"rows": pl.Series(np.diff(starts, append=frame.height))})

    monkeypatch.setattr("ingest.staging._plain_pieces", plain_pieces)
    lake = make_lake(tmp_path, jobs=4)
    runner = After(lambda: bring_nodes(lake, 0, 1e7), every=2)
    report = run_extract(lake, variant("job"), runner=runner)
    assert (report.windows, report.series_changed, runner.tasks) == (4, 0, 7)


def test_samples_replaced_by_as_many_of_the_same_times_have_all_made_again(tmp_path):
    lake = make_lake(tmp_path)
    bring_nodes(lake, 0, 2.0, load=1.5)
    source = lake.parent / "nodes-0"

    def replace() -> None:
        write(source, "node-data.csv", node_file(2.0, load=2.5))
        take(source, lake, cluster="one", force=True)

    run_extract(lake, variant("job"), runner=After(replace, every=3))
    assert Lake(lake).scan_features(variant("job").name).collect()["load__mean"].to_list() == [2.5] * 3


# -- a lake that is followed -------------------------------------------------------------------------------------------


def follow(root: Path, rounds: range) -> Path:
    """A lake that took each round's segments: 10 s of the jobs 7 and 8, of their processes and of their node."""
    spool = make_spool(root / "spool")
    one = Follower(FollowPlan(spool, root / "lake", compact_after=1000), wall=lambda: spool_files.START_S + 100.0)
    for number in rounds:
        begin = 10.0 * number
        write_segment(
            spool, "gpu", number, [gpu_cells(begin + i / 2, 7 + gpu, gpu) for gpu in (0, 1) for i in range(20)]
        )
        write_segment(spool, "process", number, [process_cells(job_id, begin + 5, job_id) for job_id in (7, 8)])
        write_segment(spool, "node", number, [node_cells(begin + 5, number)])
        assert one.round().problem == ""
    return root / "lake"


def test_each_job_has_the_processes_of_its_own_in_a_segment_of_several(tmp_path):
    lake = follow(tmp_path, range(1, 5))
    run_extract(lake, variant("job"))
    rows = Lake(lake).scan_features(variant("job").name).sort("job_id").collect()
    assert rows.select("job_id", "cpu_util_pct__mean").rows() == [(7, 7.0), (8, 8.0)]


def test_small_parts_that_are_merged_meanwhile_throw_nothing_away(tmp_path):
    lake = follow(tmp_path, range(1, 5))
    runner = After(lambda: maintain(lake, "live", compact_after=1), every=2)
    report = run_extract(lake, variant("job", place="slide"), runner=runner)
    assert len(Lake(lake).paths("node_samples")) == len(Lake(lake).paths("gpu_samples")) == 2  # of 4
    assert (report.series_done, report.series_changed, runner.tasks) == (2, 0, 2)
    windows = Lake(lake).scan_features(variant("job", place="slide").name).sort("job_id", "window_start").collect()
    assert windows["load__mean"].to_list() == pytest.approx([2.5] * windows.height)


def test_rows_that_come_and_are_merged_meanwhile_are_seen(tmp_path):
    lake = follow(tmp_path, range(1, 3))

    def go_on() -> None:
        follow(tmp_path, range(3, 4))
        maintain(lake, "live", compact_after=1)

    runner = After(go_on, every=2)
    report = run_extract(lake, variant("job"), runner=runner)
    assert (report.windows, report.series_changed, runner.tasks) == (2, 0, 4)
    rows = Lake(lake).scan("feature_series").filter(pl.col("samples") == 60).collect()
    assert rows.height == 2


def take_more(root: Path, kind: str, cells: list[object], number: int = 90) -> None:
    """Have a follower take one row, and forget the segment that it was in."""
    write_segment(root / "spool", kind, number, [cells])
    plan = FollowPlan(root / "spool", root / "lake", compact_after=1000)
    one = Follower(plan, wall=lambda: spool_files.START_S + 1e7)
    assert [one.round().problem for _ in range(2)] == ["", ""]


def extract_while_a_row_is_merged(root: Path, rounds: range, seconds: float) -> int:
    """Extract both jobs; after the second task a node's row comes, and is merged with others. Return how many tasks."""
    lake = follow(root, rounds)

    def go_on() -> None:
        take_more(root, "node", node_cells(seconds, 98.0))
        maintain(lake, "live", compact_after=1)

    runner = After(go_on, every=2)
    report = run_extract(lake, variant("job"), runner=runner)
    assert (report.windows, report.series_changed) == (2, 0)
    return runner.tasks


def test_a_late_row_between_others_with_which_it_is_merged_meanwhile_is_seen(tmp_path):
    """Merged they are of the same times as before, but one row more."""
    assert extract_while_a_row_is_merged(tmp_path, range(1, 4), 20.0) == 4
    windows = Lake(tmp_path / "lake").scan_features(variant("job").name).collect()
    assert windows["load__mean"].to_list() == [(1 + 2 + 3 + 98) / 4] * 2


def test_as_many_rows_as_before_of_other_times_are_seen(tmp_path):
    """The first row of job 7's processes is dropped for its age, and a late one comes between the others."""
    spool, lake = make_spool(tmp_path / "spool"), tmp_path / "lake"
    write_segment(spool, "gpu", 1, [gpu_cells(i / 2, 7) for i in range(80)])
    for number, seconds in enumerate(((1.0, 6.0), (5.0, 9.0))):
        write_segment(spool, "process", 2 + number, [process_cells(7, second, second) for second in seconds])
    follower = Follower(FollowPlan(spool, lake, compact_after=1000), wall=lambda: spool_files.START_S + 100.0)
    assert [follower.round().problem for _ in range(2)] == ["", ""]

    def drop_and_bring() -> None:
        take_more(tmp_path, "process", process_cells(7, 7.0, 7.0))
        keep_from = datetime.fromtimestamp(spool_files.START_S + 3.0, UTC)
        assert maintain(lake, "live", compact_after=1, keep_from=keep_from).rows_dropped == 1

    runner = After(drop_and_bring, every=1)
    report = run_extract(lake, variant("job"), runner=runner)
    assert (report.windows, report.series_changed, runner.tasks) == (1, 0, 2)
    (mean,) = Lake(lake).scan_features(variant("job").name).collect()["cpu_util_pct__mean"]
    assert mean == (5 + 6 + 7 + 9) / 4


def test_rows_of_another_time_throw_nothing_away_where_those_near_are_merged_meanwhile(tmp_path):
    assert extract_while_a_row_is_merged(tmp_path, range(1, 5), 9e6) == 2
    assert len(Lake(tmp_path / "lake").paths("node_samples")) == 2  # one for each day
