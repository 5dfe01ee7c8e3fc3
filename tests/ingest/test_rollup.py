"""Roll-ups against their slow twins, and the property that pieces add up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ingest.quality import MAX_GAP_S
from ingest.rollup import fold_pieces, join_minutes, join_pieces, seam_minutes, summarise_jobs
from ingest.schemas import GPU_SAMPLES, JOBS
from ingest.summaries import PIECE_SCHEMA, minutes_frame, pieces_frame, series_starts, summarise
from tests import naive

START = datetime(2021, 3, 1, 12, 0, 30, tzinfo=UTC)
KEY = ["job_id", "node", "gpu_index"]


def samples(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return GPU_SAMPLES.conform(pl.DataFrame(rows, infer_schema_length=None)).sort([*KEY, "time"])


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


@st.composite
def series_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of up to four series, each with irregular steps, some of them gaps, and values missing here and there."""
    rows: list[dict[str, Any]] = []
    keys = draw(
        st.lists(
            st.tuples(maybe(st.integers(1, 3)), st.sampled_from("ab"), st.integers(0, 1)),
            min_size=1,
            max_size=4,
            unique=True,
        )
    )
    for job_id, node, gpu in keys:
        at = START
        for step_ms in draw(
            st.lists(st.sampled_from([1, 110, 900, 9_999, 10_000, 10_001, 70_000, 4_000_000]), max_size=9)
        ):
            at += timedelta(milliseconds=step_ms)
            rows.append(
                {
                    "job_id": job_id,
                    "node": node,
                    "gpu_index": gpu,
                    "time": at,
                    "power_w": draw(maybe(st.integers(0, 700).map(float))),
                    "gpu_util_pct": draw(maybe(st.integers(0, 100))),
                    "memory_used_mib": draw(maybe(st.integers(0, 32_000))),
                    "memory_free_mib": draw(maybe(st.integers(0, 32_000))),
                    "gpu_temp_c": draw(maybe(st.integers(20, 90))),
                    "energy_counter_j": draw(maybe(st.integers(0, 10**9).map(float))),
                }
            )
    return rows


def pieces_of(*frames: pl.DataFrame) -> pl.DataFrame:
    return pieces_frame([summarise(frame, series_starts(frame)) for frame in frames if frame.height])


def minutes_of(*frames: pl.DataFrame) -> pl.DataFrame:
    return join_minutes(minutes_frame([summarise(frame, series_starts(frame)) for frame in frames if frame.height]))


def assert_close(found: dict[str, Any], expected: dict[str, Any], rel: float) -> None:
    """Values equal to a tolerance; null where null is expected, and only there."""
    missing = {name for name, value in expected.items() if value is None}
    assert {name for name in expected if found[name] is None} == missing
    present = {name: value for name, value in expected.items() if value is not None}
    assert {name: found[name] for name in present} == pytest.approx(present, rel=rel, abs=1e-6)


def energy_j(time_us: list[int], power_w: list[float]) -> float:
    rows = [
        {"job_id": 1, "node": "n", "gpu_index": 0, "time": START + timedelta(microseconds=us), "power_w": power}
        for us, power in zip(time_us, power_w, strict=True)
    ]
    return float(pieces_of(samples(rows))["energy_j"][0])


def test_energy_is_the_area_under_the_power_by_hand() -> None:
    assert energy_j([0, 1_000_000, 3_000_000, 60_000_000], [100.0, 200.0, 200.0, 500.0]) == 150.0 + 400.0


def test_a_gap_adds_no_energy_and_its_very_edge_does() -> None:
    edge_us = int(MAX_GAP_S * 1e6)
    assert energy_j([0, edge_us], [50.0, 50.0]) == 50.0 * MAX_GAP_S
    assert energy_j([0, edge_us + 1], [50.0, 50.0]) == 0.0


@settings(max_examples=50)
@given(series_rows())
def test_every_series_is_summed_up_as_by_plain_loops(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    found = join_pieces(pieces_of(samples(rows)))
    twin = naive.by_series(rows)
    assert found.height == len(twin)
    for row in found.iter_rows(named=True):
        expected = naive.summarise_series(twin[row["job_id"], row["node"], row["gpu_index"]])
        assert_close(row, expected, rel=1e-9)


@settings(max_examples=50)
@given(series_rows())
def test_every_minute_is_summed_up_as_by_plain_loops(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    found = minutes_of(samples(rows))
    total = 0
    for row in found.iter_rows(named=True):
        mine = [
            r
            for r in naive.by_series(rows)[row["job_id"], row["node"], row["gpu_index"]]
            if r["time"].replace(second=0, microsecond=0) == row["minute"]
        ]
        expected = naive.summarise_minute(mine)
        assert_close(row, expected, rel=1e-5)
        total += row["n"]
    assert total == len(rows)


@settings(max_examples=25)
@given(series_rows(), st.data())
def test_pieces_cut_anywhere_add_up_to_the_whole(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    if not rows:
        return
    frame = samples(rows)
    cut = data.draw(st.integers(0, frame.height))
    whole, parts = join_pieces(pieces_of(frame)), join_pieces(pieces_of(frame[:cut], frame[cut:]))
    assert_frame_equal(whole, parts, check_row_order=False, rel_tol=1e-9, abs_tol=1e-6)
    assert_frame_equal(minutes_of(frame), minutes_of(frame[:cut], frame[cut:]), rel_tol=1e-5)


@st.composite
def sparse_series(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of one series as collectors write them: power nearly always, the counter now and then, and it may fall."""
    at, counter_j, rows = START, 1000.0, []
    for step_ms in draw(st.lists(st.sampled_from([100, 1000, 10_000, 10_001]), min_size=1, max_size=40)):
        at += timedelta(milliseconds=step_ms)
        counter_j = draw(st.sampled_from([counter_j + 50, counter_j + 50, counter_j + 50, 0.0]))
        power_w = draw(st.sampled_from([100.0, 250.0, 400.0, None]))
        told_j = draw(st.sampled_from([None, None, None, counter_j]))
        key = {"job_id": 1, "node": "n", "gpu_index": 0}
        rows.append({**key, "time": at, "power_w": power_w, "energy_counter_j": told_j})
    return rows


def partition(draw: st.DataObject, n: int) -> list[tuple[int, int]]:
    """Return stretches that make up n things."""
    cuts = sorted(draw.draw(st.sets(st.integers(1, n - 1), max_size=8))) if n > 1 else []
    return list(zip([0, *cuts], [*cuts, n], strict=True))


def assert_same_pieces(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    told = [name for name in PIECE_SCHEMA if name in expected.columns]
    assert_frame_equal(found.select(told), expected.select(told), rel_tol=1e-9, abs_tol=1e-6)


@settings(max_examples=25)
@given(sparse_series(), st.data())
def test_any_cut_of_a_series_folded_in_any_grouping_has_the_same_two_energies(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    frame = samples(rows)
    whole = pieces_of(frame)
    pieces = pieces_of(*[frame[a:b] for a, b in partition(data, frame.height)])
    grouped = pl.concat([fold_pieces(pieces[a:b]) for a, b in partition(data, pieces.height)])
    for found in (pieces, grouped):
        assert_same_pieces(join_pieces(found), join_pieces(whole))
        assert_same_pieces(fold_pieces(found), whole)
    told = join_pieces(grouped).select("both_energy_j", "both_counter_j").row(0)
    assert told == pytest.approx(naive.energy_twice_j(rows))


def test_a_piece_without_any_reading_of_the_counter_is_between_two_that_have_one() -> None:
    frame = one_gpu([100.0] * 9, [0.0, None, None, None, None, None, None, None, 640.0])
    series = join_pieces(pieces_of(frame[:3], frame[3:6], frame[6:]))
    assert series.select("both_energy_j", "both_counter_j").row(0) == (800.0, 640.0)
    assert summarise_jobs(series, JOBS.empty())["energy_gap_pct"].to_list() == [25.0]


def test_a_gap_in_a_piece_without_a_reading_leaves_out_the_two_around_it() -> None:
    frame = one_gpu([100.0] * 9, [0.0, 100.0, None, None, None, None, None, 1800.0, 1900.0])
    late = frame.with_columns(pl.when(pl.int_range(9) < 4).then("time").otherwise(pl.col("time").dt.offset_by("11s")))
    series = join_pieces(pieces_of(late[:3], late[3:6], late[6:]))
    assert series.select("both_energy_j", "both_counter_j").row(0) == (200.0, 200.0)


def test_across_a_piece_of_an_older_lake_no_energy_is_told_twice() -> None:
    frame = one_gpu([100.0] * 9, [0.0, 100.0, None, None, None, None, None, 700.0, 800.0])
    older = pieces_of(frame[3:6]).with_columns(pl.lit(None, PIECE_SCHEMA["power_gaps"]).alias("power_gaps"))
    series = join_pieces(pl.concat([pieces_of(frame[:3]), older, pieces_of(frame[6:])]))
    assert series.select("both_energy_j", "both_counter_j").row(0) == (200.0, 200.0)


@settings(max_examples=50)
@given(series_rows(), st.dictionaries(st.integers(1, 3), st.integers(0, 9_000)), st.data())
def test_every_job_is_summed_up_as_by_plain_loops(
    rows: list[dict[str, Any]], run_s: dict[int, int], data: st.DataObject
) -> None:
    if not rows:
        return
    frame = samples(rows)
    cut = data.draw(st.integers(0, frame.height))
    jobs = [
        {"job_id": job_id, "attempt": 0, "start_time": START, "end_time": START + timedelta(seconds=seconds)}
        for job_id, seconds in run_s.items()
    ]
    known = JOBS.conform(pl.DataFrame(jobs)) if jobs else JOBS.empty()
    found = summarise_jobs(join_pieces(pieces_of(frame[:cut], frame[cut:])), known)
    series = naive.by_series(rows)
    assert found["job_id"].to_list() == sorted({key[0] for key in series} - {None})
    for row in found.iter_rows(named=True):
        mine = [one for key, one in series.items() if key[0] == row["job_id"]]
        expected = naive.summarise_job(mine, run_s.get(row["job_id"]))
        times = {name: expected.pop(name) for name in ("first_time", "last_time")}
        assert {name: row[name] for name in times} == times
        assert_close(row, expected, rel=1e-9)


def one_gpu(power_w: list[float], counter_j: list[float | None]) -> pl.DataFrame:
    rows = [
        {"job_id": 1, "node": "n", "gpu_index": 0, "time": START + timedelta(seconds=i), "power_w": p}
        | {"energy_counter_j": c}
        for i, (p, c) in enumerate(zip(power_w, counter_j, strict=True))
    ]
    return samples(rows)


def test_a_counter_that_starts_again_loses_only_the_step_back() -> None:
    frame = one_gpu([10.0] * 4, [1000.0, 1010.0, 5.0, 15.0])
    assert join_pieces(pieces_of(frame))["counter_gain_j"].to_list() == [20.0]


def test_a_job_with_a_gpu_without_a_counter_has_no_counted_energy() -> None:
    first = one_gpu([10.0, 10.0], [1000.0, 1010.0])
    second = one_gpu([10.0, 10.0], [None, None]).with_columns(gpu_index=pl.lit(1, pl.Int16))
    series = join_pieces(pieces_of(pl.concat([first, second])))
    stats = summarise_jobs(series, JOBS.empty())
    assert (stats["energy_j"][0], stats["energy_counter_j"][0], stats["gpus"][0]) == (20.0, None, 2)


def test_coverage_is_of_the_schedulers_run_time_where_it_is_known() -> None:
    frame = one_gpu([100.0] * 11, [None] * 11)
    series = join_pieces(pieces_of(frame))
    run = {"job_id": 1, "attempt": 0, "start_time": START, "end_time": START + timedelta(seconds=40)}
    stats = summarise_jobs(series, JOBS.conform(pl.DataFrame([run])))
    assert stats["covered_gpu_s"][0] == pytest.approx(10.0)
    assert stats["coverage"][0] == pytest.approx(0.25)
    assert summarise_jobs(series, JOBS.empty())["coverage"][0] == pytest.approx(1.0)


@pytest.mark.parametrize(("allocated", "coverage"), [(4, 0.25), (1, 1.0), (0, 1.0), (None, 1.0)])
def test_coverage_is_of_the_allocated_gpus_where_they_are_more_than_were_seen(
    allocated: int | None, coverage: float
) -> None:
    series = join_pieces(pieces_of(one_gpu([100.0] * 11, [None] * 11)))
    run = {"job_id": 1, "attempt": 0, "start_time": START, "end_time": START + timedelta(seconds=10), "gpus": allocated}
    stats = summarise_jobs(series, JOBS.conform(pl.DataFrame([run])))
    assert (stats["coverage"][0], stats["gpus"][0]) == (pytest.approx(coverage), 1)


def test_a_series_without_any_power_has_no_energy_rather_than_none_used() -> None:
    frame = one_gpu([10.0, 10.0], [None, None]).with_columns(power_w=pl.lit(None, pl.Float32))
    stats = summarise_jobs(join_pieces(pieces_of(frame)), JOBS.empty())
    assert stats.select("energy_j", "power_mean_w", "power_max_w").row(0) == (None, None, None)


def test_a_minute_in_which_one_task_ends_and_another_begins_is_a_seam_and_no_other_is() -> None:
    """Three tasks share one series, a fourth has another one; only what two tasks have a part of is a seam."""
    spans = [("a", "n", 0, 50), ("a", "n", 51, 130), ("b", "n", 131, 170), ("c", "n", 240, 300), ("c", "m", 131, 170)]
    pieces = pl.DataFrame(
        [
            {
                "table": "gpu_samples",
                "part": f"part-{task}",
                "extended": False,
                "job_id": 1,
                "node": node,
                "gpu_index": 0,
                "first_time": START + timedelta(seconds=first),
                "last_time": START + timedelta(seconds=last),
            }
            for task, node, first, last in spans
        ]
    )
    seams = seam_minutes(pieces, {f"part-{task}": task for task in "abc"})
    assert seams.select("node", "minute").rows() == [("n", (START + timedelta(seconds=131)).replace(second=0))]
