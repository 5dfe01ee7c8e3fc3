"""A spool into a lake: every kind of segment, what is no fault there, and any cutting of a recording into segments."""

from __future__ import annotations

import shutil
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from app.cli import run
from tests.lakes import in_order
from tests.small_sources import take, take_twice
from tests.spool_files import (
    NODE,
    START_S,
    device_cells,
    event_cells,
    gpu_cells,
    make_spool,
    write_named,
    write_segment,
)

START = datetime.fromtimestamp(START_S, UTC)


def at(seconds: float) -> datetime:
    """A time of the made-up spools."""
    return START + timedelta(seconds=seconds)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return make_spool(tmp_path / "spool")


# -- kinds -------------------------------------------------------------------------------------------------------------


def test_idle_gpus_and_absent_sensors_are_null_and_no_fault(spool, tmp_path):
    idle = gpu_cells(0, None, temperature_memory=None, energy_mJ=None)
    write_segment(spool, "gpu", 1, [idle, gpu_cells(0.1, 7, temperature_memory=41)])
    taken = take_twice(spool, tmp_path / "lake")
    assert taken.report.cluster == "live"
    assert not taken.report.partial
    assert taken.report.reasons == {}
    assert taken.rows("gpu_samples", "job_id", "memory_temp_c", "energy_counter_j") == [
        (None, None, None),
        (7, 41, 1010.0),
    ]
    assert taken.rows("job_stats", "job_id", "samples") == [(7, 1)]


def test_every_kind_of_segment_fills_its_table(spool, tmp_path):
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)])
    profile = [7, "batch", NODE, "0", 10, f"{START_S}.250", 2_000_000, 9.5, 95.0, 1024, 4096, 12, 0.5, 0.25]
    write_segment(spool, "process", 2, [profile])
    write_segment(spool, "node", 3, [[NODE, START_S, "0:3|1000:2|", 0.0005, 1.5, 90_000, None, 17, 210.5]])
    write_segment(spool, "devices", 4, [device_cells(0)])
    write_segment(spool, "events", 5, [event_cells(1, "late"), event_cells(1, "sensor_lost", "power_w, memory")])
    write_segment(spool, "labels", 6, [[7, "resnet50"]])
    run_row = [7, 1000, 1, f"['{NODE}']", 16, 3, 256, *[f"{START_S}.5"] * 3, f"{START_S + 60}.5"]
    write_segment(spool, "jobs", 7, [[*run_row, "cpu=16,node=1,gres/gpu:h200=2", "COLLECT"]])
    taken = take_twice(spool, tmp_path / "lake")
    assert taken.rows("cpu_samples", "job_id", "step", "task", "time", "cpu_time_s") == [
        (7, "batch", "0", at(0.25), 9.5)
    ]
    assert taken.rows("node_samples", "mem_free_kib", "process_count", "lustre_rpcs", "nfs_ops", "node_power_w") == [
        (90_000, 5, None, 17, 210.5)
    ]
    assert taken.rows("collector_events", "event", "count", "seconds", "detail") == [
        ("late", 1, 0.5, None),
        ("sensor_lost", 1, 0.5, "power_w, memory"),
    ]
    assert taken.rows("labels", "job_id", "label") == [(7, "resnet50")]
    jobs = taken.rows("jobs", "job_id", "attempt", "state", "gpus", "gpu_type", "cpus", "node_list", "start_time")
    assert jobs == [(7, 0, "COMPLETED", 2, "h200", 16, NODE, at(0.5))]
    assert taken.report.reasons == {"gpus_not_seen": 1}


def test_resources_by_number_are_understood_too_and_unreadable_ones_cost_the_cell(spool, tmp_path):
    run_row = [1000, 1, f"['{NODE}']", 16, 3, 0, *[START_S] * 3, START_S + 60]
    write_segment(spool, "jobs", 1, [[7, *run_row, "1=16,4=1,1002=2", "COLLECT"]])
    write_segment(spool, "jobs", 2, [[8, *run_row, "gpus, many", "COLLECT"]])
    taken = take(spool, tmp_path / "lake")
    assert taken.rows("jobs", "job_id", "gpus", "gpu_type") == [(7, 2, "volta"), (8, None, None)]
    assert taken.counted()["wrong_type", "tres_alloc"] == 1


def test_what_is_open_hidden_or_a_lock_is_not_taken_and_not_mentioned(spool, tmp_path):
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)])
    half = gpu_cells(1, 7)
    for name in ("gpu/n1-20261124T234308.351600Z-000002.csv.open", "gpu/.n1.csv.part", "LOCK", "LOCK.sacct"):
        (spool / name).write_text(",".join(map(str, half))[:20])
    taken = take_twice(spool, tmp_path / "lake")
    assert taken.rows("gpu_samples", "time") == [(at(0),)]
    assert (taken.report.ignored_files, taken.report.files, taken.report.reasons) == ([], 1, {})


def test_an_empty_spool_makes_no_lake(spool, tmp_path):
    assert run(["lake", "ingest", str(spool), "--lake", str(tmp_path / "lake"), "--workers", "1"]) == 0
    assert not (tmp_path / "lake").exists()


def test_a_spool_in_a_tar_is_one_all_the_same(spool, tmp_path):
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)])
    with tarfile.open(tmp_path / "spool.tar.gz", "w:gz") as tar:
        tar.add(spool, "taken-home")
    taken = take(tmp_path / "spool.tar.gz", tmp_path / "lake", cluster="home")
    assert taken.rows("gpu_samples", "job_id", "cluster") == [(7, "home")]
    assert take(spool, tmp_path / "lake", cluster="home").report.files_unchanged == 1


def test_a_run_that_sacct_knows_too_is_kept_once(spool, tmp_path):
    text = f"JobIDRaw|State|Submit|Start|End\n7|COMPLETED|{START_S}|{START_S}|{START_S + 60}\n"
    (spool / "jobs").mkdir()
    (spool / "jobs" / "one-2026-11-24.sacct.txt").write_text(text)
    row = [7, 1000, 1, f"['{NODE}']", 16, 3, 0, *[START_S] * 3, START_S + 60, "cpu=16", "COLLECT"]
    write_segment(spool, "jobs", 1, [row])
    write_segment(spool, "labels", 2, [[7, "resnet50"]])
    write_segment(spool, "labels", 3, [[7, "bert"]])
    taken = take(spool, tmp_path / "lake")
    assert taken.lake.scan("jobs").collect().height == 1
    assert taken.rows("labels", "job_id", "label") == [(7, "resnet50")]
    assert taken.report.reasons["repeated_row"] == 2


def test_a_snapshot_that_was_rewritten_replaces_its_rows(spool, tmp_path):
    name = "gpu/prometheus-dcgm-20261124T23.csv"
    write_named(spool, name, [gpu_cells(0, 7), gpu_cells(15, 7)])
    take(spool, tmp_path / "lake")
    write_named(spool, name, [gpu_cells(0, 7), gpu_cells(15, 7), gpu_cells(30, 7)])
    write_named(spool, "gpu/prometheus-dcgm-20261125T00.csv", [gpu_cells(3600, 7)])
    taken = take_twice(spool, tmp_path / "lake")
    assert taken.report.files_replaced == 1
    assert taken.rows("gpu_samples", "time") == [(at(s),) for s in (0, 15, 30, 3600)]
    assert taken.rows("gpu_minutes", "minute", "n") == [
        (START.replace(second=0), 3),
        (START.replace(second=0) + timedelta(hours=1), 1),
    ]


# -- devices -----------------------------------------------------------------------------------------------------------


def test_the_inventory_tells_the_devices_with_a_row_for_each_change(spool, tmp_path):
    write_segment(spool, "gpu", 1, [gpu_cells(-3, 7), gpu_cells(0, 7, gpu=1)])
    again = device_cells(100, driver_version="590.1")
    write_segment(spool, "devices", 2, [device_cells(0), again, device_cells(200, power_limit_max_W=650.0)])
    write_segment(spool, "devices", 3, [device_cells(300, name="NVIDIA New", uuid="GPU-9", power_limit_min_W=None)])
    taken = take(spool, tmp_path / "lake")
    columns = ("gpu_index", "valid_from", "uuid", "gpu_type", "tdp_w", "limit_min_w", "limit_max_w", "memory_mib")
    assert taken.rows("devices", *columns) == [
        (0, at(-3), "GPU-0", "h100-sxm5", 700.0, 200.0, 700.0, 81_559),
        (0, at(200), "GPU-0", "h100-sxm5", 700.0, 200.0, 650.0, 81_559),
        (0, at(300), "GPU-9", None, None, None, 700.0, 81_559),
        (1, at(0), None, None, None, None, None, 81_559),
    ]
    assert taken.lake.scan("device_inventory").collect().height == 4


# -- energy ------------------------------------------------------------------------------------------------------------


def test_the_gap_of_the_two_energies_is_that_of_the_same_span(spool, tmp_path):
    """110 W by the integral, 100 W by the counter; the first second has no counter, and ten others no sample."""
    rows = [gpu_cells(0, 7, power_draw_W=900.0, energy_mJ=None)]
    rows += [gpu_cells(s, 7, power_draw_W=110.0) for s in (1, 2, 3, 14, 15)]
    write_segment(spool, "gpu", 1, rows[:4])
    write_segment(spool, "gpu", 2, rows[4:])
    stats = take(spool, tmp_path / "lake").lake.scan("job_stats").collect()
    assert stats["energy_gap_pct"].item() == pytest.approx(10.0)
    assert stats["energy_counter_j"].item() == pytest.approx(1400.0)
    assert stats["energy_j"].item() == pytest.approx((900 + 110) / 2 + 3 * 110)


def test_a_counter_that_is_read_twice_is_compared_over_all_segments_between_and_empty_cells_are_no_defect(
    spool, tmp_path
):
    """110 W by the integral, 100 W by the counter, of which the segment in the middle has no reading."""
    rows = [gpu_cells(s, 7, power_draw_W=110.0, **({} if s in (0, 29) else {"energy_mJ": None})) for s in range(30)]
    for number in range(3):
        write_segment(spool, "gpu", number, rows[10 * number : 10 * number + 10])
        taken = take(spool, tmp_path / "lake")
    ((gap_pct, counter_j, energy_j),) = taken.rows("job_stats", "energy_gap_pct", "energy_counter_j", "energy_j")
    assert (gap_pct, counter_j, energy_j) == pytest.approx((10.0, 2900.0, 29 * 110.0))
    assert not taken.report.partial


def test_without_a_counter_there_is_no_gap(spool, tmp_path):
    write_segment(spool, "gpu", 1, [gpu_cells(s, 7, energy_mJ=None) for s in (0, 1)])
    assert take(spool, tmp_path / "lake").rows("job_stats", "energy_gap_pct") == [(None,)]


# -- appending ---------------------------------------------------------------------------------------------------------


def test_a_series_that_goes_on_is_neither_merged_nor_written_anew(spool, tmp_path):
    lake = tmp_path / "lake"
    write_segment(spool, "gpu", 1, [gpu_cells(s / 10, 7) for s in range(50)])
    before = {path: path.stat().st_mtime_ns for path in take(spool, lake).lake.paths("gpu_samples")}
    write_segment(spool, "gpu", 2, [gpu_cells(s / 10, 7) for s in range(50, 100)])
    taken = take(spool, lake)
    after = {path: path.stat().st_mtime_ns for path in taken.lake.paths("gpu_samples")}
    assert before.items() <= after.items()
    assert len(after) == 2
    assert taken.report.reasons == {}
    assert taken.lake.read_series(7)["time"].to_list() == [at(s / 10) for s in range(100)]


def test_segments_that_overlap_are_joined_by_time(spool, tmp_path):
    write_segment(spool, "gpu", 1, [gpu_cells(s, 7) for s in (0, 1, 5)])
    take(spool, tmp_path / "lake")
    write_segment(spool, "gpu", 2, [gpu_cells(s, 7) for s in (3, 4, 6)])
    taken = take(spool, tmp_path / "lake")
    assert taken.lake.read_series(7)["time"].to_list() == [at(s) for s in (0, 1, 3, 4, 5, 6)]
    assert taken.rows("gpu_minutes", "n") == [(6,)]
    assert taken.rows("job_stats", "energy_j") == [(600.0,)]


ROLL_UPS = ("job_stats", "gpu_minutes")


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[list[object]], list[int], list[int]]:
    """Readings of two GPUs in the order of time, where they are cut into segments, and where ingests come between."""
    steps = draw(st.lists(st.sampled_from([0.1, 1.0, 7.5, 10.0, 10.000001, 30.0, 90.0]), min_size=2, max_size=40))
    job = draw(st.lists(st.sampled_from([None, 7, 8]), min_size=3, max_size=3))
    seconds, rows = 0.0, []
    for i, step in enumerate(steps):
        for gpu in (0, 1):
            cells: dict[str, Any] = {
                "power_draw_W": draw(st.sampled_from([None, 90.0, 250.5, 700.25])),
                "energy_mJ": draw(st.sampled_from([None, 1000 * i, 1000 * i + 17])),
                "utilization_gpu_pct": draw(st.sampled_from([None, 3, 100])),
                "temperature_gpu": draw(st.sampled_from([None, 40, 71])),
            }
            rows.append(gpu_cells(seconds + gpu / 1000, job[min(i // 10, 2)], gpu, **cells))
        seconds += step
    cuts = sorted(draw(st.sets(st.integers(1, len(rows) - 1), max_size=6)))
    return rows, cuts, draw(st.lists(st.integers(1, 3), min_size=7, max_size=7))


@settings(max_examples=6, deadline=None)
@given(recordings())
def test_any_cutting_into_segments_gives_the_same_roll_ups_as_at_once(tmp_path_factory, recording):
    rows, cuts, together = recording
    tmp_path = tmp_path_factory.mktemp("cut")
    whole = make_spool(tmp_path / "whole")
    write_segment(whole, "gpu", 1, rows)
    expected = take(whole, tmp_path / "at-once").lake
    spool, lake = make_spool(tmp_path / "spool"), tmp_path / "lake"
    segments = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    number = 0
    for n in together:
        for _ in range(n):
            if number < len(segments):
                write_segment(spool, "gpu", number + 1, segments[number])
                number += 1
        found = take(spool, lake)
    assert number == len(segments)
    assert "two_files_for_series" not in found.report.reasons
    for table in ("gpu_samples", *ROLL_UPS):
        one, other = (in_order(each.scan(table).collect()) for each in (found.lake, expected))
        assert_frame_equal(one, other, check_exact=table == "gpu_samples", rel_tol=1e-6, abs_tol=1e-9)
    for job_id in (7, 8):
        assert_frame_equal(found.lake.read_series(job_id), expected.read_series(job_id))
    shutil.rmtree(tmp_path)


def test_idle_rows_of_many_segments_share_their_minute(spool, tmp_path):
    for number in range(4):
        write_segment(
            spool, "gpu", number, [gpu_cells(number * 10 + s, None, power_draw_W=100 + number) for s in (0, 5)]
        )
        taken = take(spool, tmp_path / "lake")
    assert taken.rows("gpu_minutes", "job_id", "n", "n_power", "power_mean_w") == [(None, 8, 8, 101.5)]
    assert len(taken.lake.paths("gpu_minutes")) == 1
    assert taken.lake.scan("gpu_samples").select(pl.len()).collect().item() == 8
