"""Features of a lake whose parts are on their way, are taken away, are damaged, or are dropped for their age."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import features.live
import features.planning
from features.extract import extract
from features.live import live_features
from ingest.errors import LakeError
from ingest.head import finish_moves, read_head
from ingest.lake import Lake
from ingest.maintenance import maintain
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from tests.features.lakes import RATE, after, gpu_name, job_file, make_lake, run_extract, variant
from tests.small_sources import CPU_HEADER, NODE_HEADER, START_S, lines, snapshot, take, write
from tests.spool_files import START_S as SPOOL_START_S
from tests.spool_files import gpu_cells, make_spool, write_segment

NOW_S = START_S + 11.0
"""A second after the newest sample of the made-up jobs."""

CPU_FILE = "cpu/0001/101-timeseries.csv"
CONTEXT = {"node_samples": "load__mean", "cpu_samples": "cpu_util_pct__mean"}
"""A feature of each table that context comes from."""


class Before(SerialRunner):
    """Does something else to the lake once, before the first task reads it."""

    def __init__(self, act):
        self.acts = [act]

    def map(self, task, specs):
        if self.acts:
            self.acts.pop()()
        yield from (task(spec) for spec in specs)


def write_context(source: Path, value: float) -> None:
    """Write samples of the processes of job 101 and of its node, all of one value."""
    write(source, "node-data.csv", lines(NODE_HEADER, f"0,n1,{START_S + 2},0:3|,0.1,{value},300000000,7"))
    rows = [f"batch,n1,Task_0,{i},{START_S + i},1000,1,{value},2000,3000,0,{i},0" for i in range(1, 8)]
    write(source, CPU_FILE, lines(CPU_HEADER, *rows))


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    write_context(tmp_path / "source", 1.5)
    return make_lake(tmp_path)


# -- on their way ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 2, None], ids=["none", "two", "all"])
def unfinished(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A lake whose second ingest, of job 109 and of another job 102, died after its commit and some of its moves."""
    lake = make_lake(tmp_path)
    write_context(tmp_path / "source", 1.5)
    for job_id in (102, 109):
        write(tmp_path / "source", gpu_name(job_id), job_file(watts=500.0 + job_id))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.assembly.finish_moves", lambda _, head: head)
        patch.setattr("ingest.head._leave", lambda *_: None)
        ingest(str(tmp_path / "source"), lake, cluster="one", runner=SerialRunner())
    head = read_head(lake)
    assert head.is_pending
    for final, staged in list(head.moves.items())[: request.param]:
        (lake / final).parent.mkdir(parents=True, exist_ok=True)
        (lake / staged).replace(lake / final)
    return lake


@pytest.mark.parametrize("least_windows", [1, 32])
def test_features_are_made_after_an_ingest_that_was_killed_before_its_files_were_in_place(
    unfinished, monkeypatch, least_windows
):
    """With several tasks, the first commit puts the files in their places while the others need them."""
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", least_windows)
    report = run_extract(unfinished, variant("job"))
    assert (report.windows, report.series_changed) == (4, 0)
    rows = Lake(unfinished).scan_features(variant("job").name).sort("job_id").collect()
    assert rows["job_id"].to_list() == [101, 102, 103, 109]
    assert rows["load__mean"].to_list() == [1.5] * 4
    assert rows["cpu_util_pct__mean"].to_list()[0] == 1.5


def test_what_runs_now_is_described_after_an_ingest_that_was_killed_and_nothing_is_written(unfinished):
    files = snapshot(unfinished)
    found = live_features(unfinished, variant("job"), now_s=NOW_S).rows
    assert sorted(found["job_id"]) == [101, 102, 103, 109]
    assert found["load__mean"].to_list() == [1.5] * 4
    assert snapshot(unfinished) == files


def test_what_runs_now_is_described_while_an_ingest_puts_its_files_in_place(unfinished, monkeypatch):
    """No other generation comes of that: the files alone are elsewhere than they were a moment ago."""
    move = after(1, features.live.with_paths, lambda: finish_moves(unfinished, read_head(unfinished)))
    monkeypatch.setattr("features.live.with_paths", move)
    assert sorted(live_features(unfinished, variant(), now_s=NOW_S).rows["job_id"]) == [101, 102, 103, 109]


# -- taken away, and damaged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "name"), CONTEXT.items())
def test_a_part_of_the_context_that_is_taken_away_before_it_is_read_is_found_again(lake, table, name):
    old = Lake(lake).paths(table)

    def replace_context():
        write_context(lake.parent / "source", 2.5)
        take(lake.parent / "source", lake, cluster="one")
        assert not any(path.exists() for path in old)

    report = run_extract(lake, variant("job"), runner=Before(replace_context))
    assert (report.windows, report.series_changed) == (3, 0)
    rows = Lake(lake).scan_features(variant("job").name).sort("job_id").collect()
    assert rows[name].drop_nulls().unique().to_list() == [2.5]


def test_what_runs_now_has_the_context_that_an_ingest_replaced_in_this_moment(lake, monkeypatch):
    def replace_context() -> None:
        write_context(lake.parent / "source", 2.5)
        take(lake.parent / "source", lake, cluster="one")

    monkeypatch.setattr("features.live.with_paths", after(1, features.live.with_paths, replace_context))
    found = live_features(lake, variant("job"), now_s=NOW_S).rows
    assert {found[name].max() for name in CONTEXT.values()} == {2.5}


@pytest.mark.parametrize("table", CONTEXT)
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_part_of_the_context_is_told_of_in_one_line(lake, table, how):
    (part,) = Lake(lake).paths(table)
    content = part.read_bytes()
    if how == "cut":
        part.write_bytes(content[: len(content) // 2])
    else:
        part.write_bytes(content[:30] + bytes(byte ^ 255 for byte in content[30:90]) + content[90:])
    for describe in (
        lambda: extract(lake, variant("job"), runner=SerialRunner()),
        lambda: live_features(lake, variant("job"), now_s=NOW_S),
    ):
        with pytest.raises(LakeError, match=f"{table}.* cannot be read") as error:
            describe()
        assert "\n" not in str(error.value)


# -- written while it is looked at -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["read_head", "Lake", "read_pieces_of"])
def test_a_job_that_is_replaced_while_an_extraction_is_planned_is_described_anew(tmp_path, monkeypatch, name):
    """Its old features are in the lake; the ingest removes them, and the index that was about to be read."""
    lake = make_lake(tmp_path)
    run_extract(lake)

    def replace_job() -> None:
        write(tmp_path / "source", gpu_name(102), job_file(watts=500.0, seconds=11.0))
        take(tmp_path / "source", lake, cluster="one")

    monkeypatch.setattr(f"features.planning.{name}", after(1, getattr(features.planning, name), replace_job))
    report = run_extract(lake)
    assert (report.windows, report.series_done, report.series_changed) == (3, 1, 0)
    rows = Lake(lake).scan_features(variant().name).sort("job_id").collect()
    assert rows["power_w__minimum"].to_list() == [101.0, 500.0, 103.0]


@pytest.mark.parametrize("number", [1, 2])
def test_features_that_are_merged_while_they_are_counted_are_counted(tmp_path, monkeypatch, number):
    """The lake is opened for a plan, then for the report."""
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", 1)
    lake = make_lake(tmp_path)
    run_extract(lake)
    merge = after(number, Lake, lambda: maintain(lake, "one", compact_after=1))
    monkeypatch.setattr("features.planning.Lake", merge)
    report = run_extract(lake)
    assert (report.is_repeated, report.windows, report.features) == (True, 3, 91)
    assert len(Lake(lake).paths("features")) == 1


# -- dropped -----------------------------------------------------------------------------------------------------------


def make_live_lake(root: Path) -> tuple[Path, Path]:
    """A lake of the jobs 7, of some weeks ago, and 8; and its spool."""
    spool = make_spool(root / "spool")
    for number, (begin_s, job_id) in enumerate(((0, 7), (2e6, 8))):
        write_segment(spool, "gpu", number, [gpu_cells(begin_s + i / RATE, job_id) for i in range(21)])
    take(spool, root / "lake")
    return root / "lake", spool


def drop_first_job(lake: Path) -> None:
    """Drop the samples of job 7 for their age."""
    keep_from = datetime.fromtimestamp(SPOOL_START_S, UTC) + timedelta(days=10)
    assert maintain(lake, Lake(lake).clusters[0], compact_after=100, keep_from=keep_from).rows_dropped == 21


@pytest.mark.parametrize("place", ["start", "middle", "slide"])
def test_a_series_of_which_no_sample_was_kept_is_told_of_with_the_reason(tmp_path, place):
    lake, _ = make_live_lake(tmp_path)
    drop_first_job(lake)
    report = run_extract(lake, variant(place=place))
    assert (report.series, report.series_short, report.jobs_short) == (2, 1, 1)
    assert report.reasons == {"samples_dropped": 1}
    row = Lake(lake).scan("feature_series").filter(pl.col("job_id") == 7).collect()
    assert row.select("windows", "samples", "duration_s", "reason").rows() == [(0, 0, 10.0, "samples_dropped")]
    assert run_extract(lake, variant(place=place)).is_repeated


def test_that_no_sample_of_a_series_was_kept_holds_whatever_else_is_ingested_meanwhile(tmp_path):
    lake, spool = make_live_lake(tmp_path)
    drop_first_job(lake)

    def bring_another():
        write_segment(spool, "gpu", 9, [gpu_cells(2.1e6 + i / RATE, 9) for i in range(21)])
        ingest(str(spool), lake, runner=SerialRunner())

    report = run_extract(lake, runner=Before(bring_another))
    assert (report.series_done, report.series_changed, report.reasons) == (2, 0, {"samples_dropped": 1})


def test_a_series_whose_samples_go_while_it_is_extracted_is_told_of_too(tmp_path):
    lake, _ = make_live_lake(tmp_path)
    report = run_extract(lake, runner=Before(lambda: drop_first_job(lake)))
    assert (report.windows, report.series_changed, report.reasons) == (1, 0, {"samples_dropped": 1})


def test_features_that_were_made_before_the_samples_went_stay(tmp_path):
    lake, _ = make_live_lake(tmp_path)
    run_extract(lake)
    drop_first_job(lake)
    report = run_extract(lake)
    assert (report.is_repeated, report.windows, report.reasons) == (True, 2, {})
