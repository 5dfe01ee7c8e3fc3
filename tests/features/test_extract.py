"""Extraction into a lake: what is in it, what is made anew, and what is left when it is killed or the lake changes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Timer

import numpy as np
import polars as pl
import pytest

from features import extraction
from features.extract import extract
from features.extraction import read_span
from features.live import live_features
from features.planning import plan
from features.statistical import statistic_names, statistics
from features.windows import CHALLENGE_CHANNELS, cut_windows
from ingest.errors import LakeBusyError, LakeError
from ingest.lake import Lake
from ingest.lake_lock import locked
from ingest.part_writer import PartWriter
from ingest.parts import PartReader
from ingest.runner import PoolRunner, SerialRunner
from ingest.schemas import GPU_SAMPLES, TIME
from tests.features.lakes import RATE, gpu_name, job_file, make_lake, run_extract, variant
from tests.lakes import damage_first_page
from tests.small_sources import (
    CPU_HEADER,
    LOG_HEADER,
    NODE_HEADER,
    START_S,
    gpu_file,
    gpu_row,
    lines,
    log_row,
    snapshot,
    take,
    write,
)
from tests.spool_files import gpu_cells, make_spool, write_segment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return make_lake(tmp_path)


def jobs_of(lake: Path, name: str | None = None) -> list[int]:
    """The jobs that have windows in a variant."""
    return Lake(lake).scan_features(name or variant().name).collect()["job_id"].sort().to_list()


# -- what is in it -----------------------------------------------------------------------------------------------------


def test_the_features_are_those_of_the_windows_of_each_series(lake):
    report = run_extract(lake)
    assert (report.windows, report.jobs, report.rows, report.features) == (3, 3, 3, 91)
    rows = Lake(lake).scan_features(variant().name).sort("job_id").collect()
    windows = cut_windows(Lake(lake).scan("gpu_samples").collect(), variant().window)
    names = statistic_names(CHALLENGE_CHANNELS)
    assert rows.columns[11:-1] == names
    found, expected = rows.select(names).to_numpy(), statistics(windows.values)
    np.testing.assert_array_equal(found, expected.astype(found.dtype))
    fixed = rows.select("node", "gpu_index", "window_s", "place", "set", "set_version", "reason").unique().rows()
    assert fixed == [("n1", 0, 4.0, "start", "statistical", 2, None)]
    assert rows["window_start"].dt.epoch("s").to_list() == [START_S] * 3


@pytest.mark.parametrize("place", ["start", "middle", "random", "slide"])
def test_every_place_gives_the_windows_that_cutting_whole_series_gives(place, lake):
    spec = variant(place=place, **({"stride_s": 1.5} if place == "slide" else {}))
    run_extract(lake, spec)
    rows = Lake(lake).scan_features(spec.name).sort("job_id", "window_start").collect()
    windows = cut_windows(Lake(lake).scan("gpu_samples").collect(), spec.window)
    assert rows["window_start"].to_list() == windows.table["start"].to_list()
    powers = windows.values[:, CHALLENGE_CHANNELS.index("power_w")]
    np.testing.assert_allclose(rows["power_w__mean"].to_numpy(), powers.mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("read_rows", [4, 262_144])
def test_an_even_grid_is_that_of_whole_series_whatever_is_read_at_once(tmp_path, monkeypatch, read_rows):
    """Irregular readings, some a longer gap apart; each chunk is read with what lies beside it."""
    monkeypatch.setattr(extraction, "READ_ROWS", read_rows)
    step_s = np.random.default_rng(5).choice([0.3, 0.5, 0.7, 0.9], 120)
    step_s[[10, 30, 90, 105]] = 1.3
    rows = [gpu_row(second, 100 + i) for i, second in enumerate(np.cumsum(step_s).round(1))]
    write(tmp_path / "source", gpu_name(101), gpu_file(*rows))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    for place in ("middle", "slide"):
        spec = variant(place=place, seconds=3.0, max_gap_s=1.0, even=True)
        report = run_extract(tmp_path / "lake", spec)
        found = Lake(tmp_path / "lake").scan_features(spec.name).sort("window_start").collect()
        windows = cut_windows(Lake(tmp_path / "lake").scan("gpu_samples").collect(), spec.window)
        assert (report.windows, report.windows_refused) == (windows.table.height, windows.refused.height)
        assert found["window_start"].to_list() == windows.table["start"].to_list()
        values, expected = found.select(statistic_names(CHALLENGE_CHANNELS)).to_numpy(), statistics(windows.values)
        np.testing.assert_array_equal(values, expected.astype(values.dtype))
    assert windows.table.height > 5
    assert set(windows.refused["reason"]) == {"gap"}


@pytest.mark.parametrize(("step_s", "rate"), [(0.5, 2.0), (0.02, 50.0)])
def test_a_window_says_how_fast_its_samples_were_read(tmp_path, step_s, rate):
    write(tmp_path / "source", gpu_name(101), gpu_file(*[gpu_row(i * step_s) for i in range(round(9 / step_s))]))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    run_extract(tmp_path / "lake")
    rows = Lake(tmp_path / "lake").scan_features(variant().name).collect()
    assert rows["samples_per_s"].to_list() == pytest.approx([rate])
    newest = live_features(tmp_path / "lake", variant(), now_s=START_S + 9.0).rows
    assert newest["samples_per_s"].to_list() == pytest.approx([rate])


def test_the_rate_of_one_sample_is_not_known(lake):
    run_extract(lake, variant(seconds=0.5))
    assert Lake(lake).scan_features(variant(seconds=0.5).name).collect()["samples_per_s"].to_list() == [None] * 3


def test_a_window_needs_only_the_row_groups_around_it(tmp_path):
    """The first row group is damaged, which is seen where it is read."""
    times = [datetime(2021, 1, 1, tzinfo=UTC) + timedelta(seconds=i) for i in range(60)]
    rows = pl.DataFrame({"job_id": [1] * 60, "node": "n", "gpu_index": 0, "power_w": range(60), "time": times})
    with PartWriter(tmp_path / "x.parquet", GPU_SAMPLES, stretches=True) as writer:
        writer.write(GPU_SAMPLES.conform(rows), range(0, 60, 20))
    damage_first_page(tmp_path / "x.parquet", list(GPU_SAMPLES.columns).index("time"))
    piece = {"part": str(tmp_path / "x.parquet"), "row_start": 0, "rows": 60}
    pieces = pl.DataFrame([{**piece, "first_time": times[0], "last_time": times[-1]}])
    pieces = pieces.cast({"first_time": TIME, "last_time": TIME})
    begin_us = round(times[0].timestamp()) * 10**6
    found = read_span(PartReader(), pieces, begin_us + 38 * 10**6, begin_us + 42 * 10**6, ["power_w"])
    assert found["power_w"].to_list() == [38.0, 39.0, 40.0, 41.0]
    with pytest.raises(LakeError):
        read_span(PartReader(), pieces, begin_us, begin_us + 42 * 10**6, ["power_w"])


def test_two_workers_make_what_one_makes(lake):
    run_extract(lake)
    expected = Lake(lake).scan_features(variant().name).collect()
    other = make_lake(lake.parent / "other")
    with PoolRunner(2) as runner:
        run_extract(other, runner=runner)
    assert Lake(other).scan_features(variant().name).collect().sort("job_id").equals(expected.sort("job_id"))


def test_a_wide_set_has_fewer_tasks_so_that_its_columns_are_worth_a_part(tmp_path):
    lake = make_lake(tmp_path, jobs=12)
    tasks = {}
    for name in ("statistical", "intervals"):
        what = variant(name, place="slide", seconds=3.0, stride_s=0.5)
        tasks[name] = plan(lake, tmp_path / name, what, "one", workers=2)
        assert sum(task.windows for task in tasks[name]) == 12 * 15
    assert len(tasks["intervals"]) == 2 < len(tasks["statistical"])


def test_the_last_tasks_of_several_workers_are_small_so_that_none_waits_long_for_another(tmp_path, monkeypatch):
    for name, value in (("TASKS", 2), ("TASKS_PER_WORKER", 1), ("LEAST_WINDOWS", 1)):
        monkeypatch.setattr(f"features.planning.{name}", value)
    lake = make_lake(tmp_path, jobs=40)
    windows = {
        workers: [task.windows for task in plan(lake, tmp_path / str(workers), variant(), "one", workers)]
        for workers in (1, 2)
    }
    assert windows[1] == [20, 20]
    assert windows[2][:3] == [10, 7, 5]
    assert windows[2] == sorted(windows[2], reverse=True)
    assert windows[2][-1] <= 2
    assert sum(windows[2]) == 40


def test_a_series_in_several_parts_is_one_series(tmp_path):
    """Two GPUs of a job in one file, and slid windows over a series longer than what is read at once."""
    rows = [gpu_row(i / RATE, 100 + i, gpu=gpu) for i in range(41) for gpu in (0, 1)]
    write(tmp_path / "source", gpu_name(101), gpu_file(*rows))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    report = run_extract(tmp_path / "lake", variant(place="slide"))
    assert (report.series, report.jobs, report.windows) == (2, 1, 10)


def test_a_job_that_is_too_short_is_told_of_with_its_reason(lake):
    write(lake.parent / "source", gpu_name(109), job_file(seconds=3.0))
    take(lake.parent / "source", lake, cluster="one")
    report = run_extract(lake)
    assert (report.series, report.series_short, report.jobs_short) == (4, 1, 1)
    assert report.reasons == {"shorter_than_window": 1}
    short = Lake(lake).scan("feature_series").filter(pl.col("windows") == 0).collect()
    assert short.select("job_id", "duration_s", "samples", "reason").rows() == [(109, 3.0, 7, "shorter_than_window")]


def test_windows_in_a_gap_are_counted_with_the_reason_and_the_others_are_there(tmp_path):
    rows = [gpu_row(i / RATE) for i in range(33) if not 8 <= i / RATE < 12]
    write(tmp_path / "source", gpu_name(101), gpu_file(*rows))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    report = run_extract(tmp_path / "lake", variant(place="slide"))
    assert (report.windows, report.windows_refused, report.series_short) == (3, 1, 0)
    series = Lake(tmp_path / "lake").scan("feature_series").collect()
    assert series.select("windows", "windows_refused", "reason").rows() == [(3, 1, "too_few_samples")]


@pytest.mark.parametrize(
    ("place", "windows", "refused"),
    [("middle", 0, 1), ("slide", 4, 8)],
)
def test_a_gap_longer_than_a_window_between_two_segments_is_no_damage(tmp_path, monkeypatch, place, windows, refused):
    monkeypatch.setattr(extraction, "READ_ROWS", 4)
    spool = make_spool(tmp_path / "spool")
    for number, begin_s in enumerate((0, 40)):
        write_segment(spool, "gpu", number + 1, [gpu_cells(begin_s + i / RATE, 7) for i in range(19)])
        take(spool, tmp_path / "lake")
    write_segment(spool, "gpu", 3, [gpu_cells(i / RATE, 8) for i in range(19)])
    take(spool, tmp_path / "lake")
    report = run_extract(tmp_path / "lake", variant(place=place))
    rows = Lake(tmp_path / "lake").scan("feature_series").sort("job_id").collect()
    assert rows.select("windows", "windows_refused", "reason").row(0) == (windows, refused, "too_few_samples")
    assert (report.jobs, rows["windows"].to_list()[1]) == (2, 1 if place == "middle" else 2)


def test_a_channel_without_readings_has_null_features_and_a_reason_in_every_set(tmp_path):
    rows = [gpu_row(i / RATE, util=50 + i % 2).replace(",40,41,", ",40,,") for i in range(41)]
    write(tmp_path / "source", gpu_name(101), gpu_file(*rows))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    for name in ("covariance", "statistical", "spectral", "intervals", "low_overhead", "job"):
        run_extract(tmp_path / "lake", variant(name))
        row = Lake(tmp_path / "lake").scan_features(variant(name).name).collect()
        assert row["reason"].to_list() == ["no_reading: memory_temp_c"], name
        absent = row.select(pl.col("^.*memory_temp_c.*$"))
        assert sum(absent.null_count().row(0)) == absent.width, name
        present = row.select(pl.col("^gpu_util_pct__.*$"))
        assert sum(present.null_count().row(0)) < present.width, name


@pytest.mark.slow
def test_a_missing_reading_is_not_counted_by_the_set_that_counts_every_reading(tmp_path):
    rows = [gpu_row(i / RATE, "" if i == 3 else 100 + i) for i in range(41)]
    write(tmp_path / "source", gpu_name(101), gpu_file(*rows))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    run_extract(tmp_path / "lake", variant("efficient"))
    row = Lake(tmp_path / "lake").scan_features(variant("efficient").name).collect()
    assert row["reason"].to_list() == ["missing_reading: power_w"]
    assert row["power_w__count_above_mean"].to_list() == [None]
    assert row["gpu_util_pct__length"].to_list() == [8]


def test_a_clock_that_goes_back_gives_the_windows_of_the_sorted_samples(tmp_path):
    rows = [gpu_row(i / RATE, 100 + i) for i in range(21)]
    for name, content in (("straight", rows), ("back", [*rows[10:], *rows[:10]])):
        write(tmp_path / name / "source", gpu_name(101), gpu_file(*content))
        take(tmp_path / name / "source", tmp_path / name / "lake", cluster="one")
        run_extract(tmp_path / name / "lake")
    straight, back = (
        Lake(tmp_path / name / "lake").scan_features(variant().name).collect() for name in ("straight", "back")
    )
    assert straight.equals(back)


def test_one_sample_is_no_window_and_no_zero(tmp_path):
    write(tmp_path / "source", gpu_name(101), gpu_file(gpu_row(0)))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    report = run_extract(tmp_path / "lake")
    assert (report.windows, report.reasons) == (0, {"shorter_than_window": 1})
    with pytest.raises(LakeError, match="has no features called 'statistical-v2-4s-start-2hz'; it has none"):
        Lake(tmp_path / "lake").scan_features(variant().name)


def test_a_lake_without_gpu_samples_is_told_so(tmp_path):
    write(tmp_path / "source", "slurm-log.csv", lines(LOG_HEADER, log_row()))
    take(tmp_path / "source", tmp_path / "lake", cluster="one")
    with pytest.raises(LakeError, match="has no GPU samples, which features are made of; take some in"):
        run_extract(tmp_path / "lake")


def test_a_cluster_that_is_not_there_is_refused_with_those_that_are(lake):
    with pytest.raises(LakeError, match="no GPU samples of a cluster 'two'; it has those of one"):
        run_extract(lake, cluster="two")


# -- again -------------------------------------------------------------------------------------------------------------


def test_the_same_again_changes_nothing_and_says_so(lake):
    run_extract(lake)
    files = snapshot(lake)
    again = run_extract(lake)
    assert (again.rows, again.series_done, again.windows, again.is_repeated) == (0, 0, 3, True)
    assert snapshot(lake) == files


def test_other_windows_and_other_sets_come_beside(lake):
    others = [variant(), variant("covariance"), variant(seconds=5.0), variant(place="middle"), variant(max_gap_s=1.0)]
    others += [variant(place="random"), variant(place="random", seed=1), variant(place="slide", stride_s=1)]
    for what in others:
        run_extract(lake, what)
    known = [info.variant for info in Lake(lake).variants()]
    assert sorted(known) == sorted({what.name for what in others})
    assert len(known) == len(others)
    assert all(jobs_of(lake, what.name)[::3] for what in others)


def test_only_what_is_new_is_made_after_an_ingest(lake):
    run_extract(lake)
    write(lake.parent / "source", gpu_name(109), job_file())
    take(lake.parent / "source", lake, cluster="one")
    assert jobs_of(lake) == [101, 102, 103]
    report = run_extract(lake)
    assert (report.rows, report.series_done, report.windows) == (1, 1, 4)


def test_features_of_samples_that_were_replaced_are_gone_with_them_and_the_others_stay(lake):
    run_extract(lake)
    run_extract(lake, variant("covariance"))
    write(lake.parent / "source", gpu_name(102), job_file(watts=500.0, seconds=11.0))
    take(lake.parent / "source", lake, cluster="one")
    assert jobs_of(lake) == jobs_of(lake, variant("covariance").name) == [101, 103]
    assert Lake(lake).scan("feature_series").collect()["job_id"].sort().to_list() == [101, 101, 103, 103]
    report = run_extract(lake)
    assert (report.rows, report.windows) == (1, 3)
    rows = Lake(lake).scan_features(variant().name).filter(pl.col("job_id") == 102).collect()
    assert rows["power_w__minimum"].to_list() == [500.0]


def test_an_ingest_into_another_cluster_leaves_features_alone(lake):
    run_extract(lake)
    take(lake.parent / "source", lake, cluster="two")
    assert jobs_of(lake) == [101, 102, 103]
    assert run_extract(lake).windows == 6


def test_the_context_of_the_job_set_comes_from_the_lake_and_goes_when_that_changes(lake):
    source = lake.parent / "source"
    write(source, "node-data.csv", lines(NODE_HEADER, f"0,n1,{START_S + 2},0:3|,0.1,1.5,300000000,7"))
    cpu = [f"batch,n1,Task_0,{i},{START_S + i},1000,1,{100 + i},2000,3000,0,{i},0" for i in range(1, 8)]
    write(source, "cpu/0001/101-timeseries.csv", lines(CPU_HEADER, *cpu))
    take(source, lake, cluster="one")
    run_extract(lake, variant("job"))
    run_extract(lake)
    rows = Lake(lake).scan_features(variant("job").name).sort("job_id").collect()
    assert rows["load__mean"].to_list() == [1.5] * 3
    assert rows["cpu_util_pct__mean"].to_list() == [104.0, None, None]
    assert rows["read_mib__rate_mib_per_s"].to_list()[0] == pytest.approx(27 / 6)
    write(source, "node-data.csv", lines(NODE_HEADER, f"0,n1,{START_S + 2},0:3|,0.1,2.5,300000000,7", ""))
    take(source, lake, cluster="one", force=True)
    assert [info.variant for info in Lake(lake).variants()] == [variant().name]
    run_extract(lake, variant("job"))
    assert Lake(lake).scan_features(variant("job").name).collect()["load__mean"].to_list() == [2.5] * 3


# -- killed, and at the same time --------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import features.extract as module
import features.planning as planning
from tests.features.lakes import variant
from ingest.runner import SerialRunner

planning.LEAST_WINDOWS = 1
real, calls = module.commit_features, []

def commit(*arguments, **options):
    calls.append(arguments)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)

module.commit_features = commit
module.extract(Path(sys.argv[1]), variant(), runner=SerialRunner(), commit_every_s=0.0)
"""


@pytest.mark.parametrize("at", [1, 2])
def test_a_run_that_was_killed_goes_on_after_its_last_commit(at, tmp_path):
    lake = make_lake(tmp_path, jobs=4)
    command = [sys.executable, "-c", KILLED.format(at=at), str(lake)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [] if at == 1 else jobs_of(lake)
    assert Lake(lake).check().problems == ()
    report = run_extract(lake)
    assert (report.rows, report.windows) == (4 - len(left), 4)
    assert at == 1 or 0 < len(left) < 4
    assert jobs_of(lake) == [101, 102, 103, 104]


class Meanwhile(SerialRunner):
    """Does something else to the lake once, after the first tasks have read it and before anything is committed."""

    def __init__(self, act):
        self.acts = [act]

    def map(self, task, specs):
        results = [task(spec) for spec in specs]
        if self.acts:
            self.acts.pop()()
        yield from results


def test_a_series_that_changes_while_it_is_extracted_is_extracted_again(lake):
    def replace_one():
        write(lake.parent / "source", gpu_name(102), job_file(watts=500.0, seconds=11.0))
        take(lake.parent / "source", lake, cluster="one")

    report = run_extract(lake, runner=Meanwhile(replace_one))
    assert (report.windows, report.series_changed) == (3, 0)
    rows = Lake(lake).scan_features(variant().name).sort("job_id").collect()
    assert rows["power_w__minimum"].to_list() == [101.0, 500.0, 103.0]


def test_a_part_that_is_taken_away_before_it_is_read_is_found_again(lake):
    class Before(Meanwhile):
        def map(self, task, specs):
            if self.acts:
                self.acts.pop()()
            yield from (task(spec) for spec in specs)

    def replace_all():
        for job_id in (101, 102, 103):
            write(lake.parent / "source", gpu_name(job_id), job_file(watts=500.0, seconds=11.0))
        take(lake.parent / "source", lake, cluster="one")

    report = run_extract(lake, runner=Before(replace_all))
    assert (report.windows, report.series_changed) == (3, 0)
    assert Lake(lake).scan_features(variant().name).collect()["power_w__minimum"].to_list() == [500.0] * 3


def test_two_extractions_at_once_are_one_too_many(lake):
    with locked(lake / "_extraction" / "LOCK", lake), pytest.raises(LakeBusyError, match=re.escape(str(lake))):
        extract(lake, variant(), runner=SerialRunner())


class Ingesting(SerialRunner):
    """An ingest holds the lake from before the first task until some seconds after the last."""

    def __init__(self, lake, after_s):
        self.lake, self.after_s, self.held = lake, after_s, ExitStack()
        self.held.enter_context(locked(lake / "_manifest" / "LOCK", lake))

    def map(self, task, specs):
        yield from (task(spec) for spec in specs)
        Timer(self.after_s, self.held.close).start()


@pytest.mark.parametrize(("after_s", "times_said"), [(0.0, 0), (1.5, 1)])
def test_an_ingest_that_holds_the_lake_puts_commits_off_and_ends_nothing(lake, monkeypatch, after_s, times_said):
    monkeypatch.setattr("ingest.feature_commit.BUSY_S", 0.1)
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", 1)
    said = []
    report = run_extract(lake, runner=Ingesting(lake, after_s), say=said.append)
    assert (report.rows, report.series_changed, jobs_of(lake)) == (3, 0, [101, 102, 103])
    assert len(said) == times_said
    assert all("is being written by process" in line for line in said)


def test_an_ingest_without_end_is_an_error_after_a_while(lake, monkeypatch):
    monkeypatch.setattr("features.extract.LAST_BUSY_S", 0.1)
    with locked(lake / "_manifest" / "LOCK", lake), pytest.raises(LakeBusyError, match="is being written by"):
        extract(lake, variant(), runner=SerialRunner())


def test_progress_ends_with_all_windows_done(lake):
    told = []
    run_extract(lake, progress=told.append)
    assert (told[0].phase, told[-1].phase) == ("planning", "extracting")
    assert (told[-1].windows_done, told[-1].windows_total) == (3, 3)
