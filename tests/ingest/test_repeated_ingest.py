"""The same source again: unchanged, grown, changed or shrunken, in one task or in shares."""

from __future__ import annotations

import random

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.head import TABLE_FOLDERS
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from ingest.schemas import TABLES
from ingest.synthetic_files import pack
from tests.gpu_files import HEADER
from tests.small_sources import (
    CPU_HEADER,
    EXTENDED_HEADER,
    GPU_FILE,
    LOG_HEADER,
    NODE_HEADER,
    START_S,
    Taken,
    gpu_file,
    gpu_row,
    lines,
    log_row,
    read_in_pieces,
    read_in_shares,
    snapshot,
    take,
    take_twice,
    write,
)

OTHER_FILE = "gpu/0002/102-n1.csv"


@pytest.fixture(params=["at once", "in shares"])
def reading(request, monkeypatch):
    """The three ways to read a file: several at once, a large one piece by piece, a large one by several tasks."""
    if request.param == "at once":
        return
    read_in_pieces(monkeypatch, piece=700, batch=2000)
    if request.param == "in shares":
        read_in_shares(monkeypatch, block=1500)


def put(tmp_path, seconds: range, *bad: str, watts: int = 100) -> None:
    """Write the file under test and one beside it that never changes."""
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, watts) for i in seconds], *bad))
    write(tmp_path, f"in/{OTHER_FILE}", gpu_file(*[gpu_row(i, 300) for i in range(3)]))


def assert_other_is_untouched(taken: Taken) -> None:
    assert taken.series(102) == [(float(i), 300.0) for i in range(3)]
    other = next(record for record in taken.report.records if record.name == OTHER_FILE)
    assert (other.status, other.rows_unchanged) == ("unchanged", 3)


in_every_way = pytest.mark.parametrize("reading", ["at once", "in pieces", "in shares"], indirect=True)


@in_every_way
def test_a_second_ingest_of_the_same_changes_nothing_but_the_count_of_unchanged_rows(tmp_path, reading):
    put(tmp_path, range(100), "prose", gpu_row(5, 100))
    first = take(tmp_path / "in", tmp_path / "lake")
    before = snapshot(tmp_path / "lake")
    again = take(tmp_path / "in", tmp_path / "lake")
    assert snapshot(tmp_path / "lake") == before
    assert (again.report.rows_in, again.report.rows_unchanged, again.report.rows_out) == (105, 105, 0)
    assert (again.report.files, again.report.files_unchanged) == (2, 2)
    assert again.report.tables == first.report.tables
    assert (first.report.partial, again.report.partial) == (True, False)


@in_every_way
def test_a_grown_file_replaces_its_old_rows(tmp_path, reading):
    put(tmp_path, range(80), "prose")
    take(tmp_path / "in", tmp_path / "lake")
    put(tmp_path, range(120))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0) for i in range(120)]
    assert (taken.report.rows_in, taken.report.rows_out, taken.report.rows_unchanged) == (123, 120, 3)
    assert (taken.rejected(), taken.counted()) == ([], {})
    assert taken.rows("job_stats", "job_id", "samples") == [(101, 120), (102, 3)]
    assert_other_is_untouched(taken)


def test_a_changed_file_of_the_same_size_replaces_its_old_rows(tmp_path):
    put(tmp_path, range(80))
    take(tmp_path / "in", tmp_path / "lake")
    put(tmp_path, range(80), watts=250)
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 250.0) for i in range(80)]
    assert taken.rows("gpu_minutes", "job_id", "power_max_w")[0] == (101, 250.0)
    assert_other_is_untouched(taken)


@in_every_way
def test_a_shrunken_file_is_refused_and_its_rows_stay(tmp_path, reading):
    put(tmp_path, range(80))
    take(tmp_path / "in", tmp_path / "lake")
    put(tmp_path, range(60))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0) for i in range(80)]
    assert taken.refused() == [(GPU_FILE, "shrunken", 0)]
    assert taken.report.reasons == {"shrunken": 1}
    assert (taken.report.partial, taken.report.files_refused, taken.report.rows_unchanged) == (True, 1, 83)
    assert_other_is_untouched(taken)


def test_a_shrunken_file_is_taken_by_force_and_leaves_no_trace_of_its_refusal(tmp_path):
    put(tmp_path, range(80))
    take(tmp_path / "in", tmp_path / "lake")
    put(tmp_path, range(60))
    take(tmp_path / "in", tmp_path / "lake")
    taken = take_twice(tmp_path / "in", tmp_path / "lake", force=True)
    assert taken.series() == [(float(i), 100.0) for i in range(60)]
    assert (taken.refused(), taken.counted(), taken.report.partial) == ([], {}, False)
    assert_other_is_untouched(taken)


def test_a_file_that_shrank_and_has_come_back_leaves_no_trace_of_its_refusal(tmp_path):
    put(tmp_path, range(80))
    take(tmp_path / "in", tmp_path / "lake")
    put(tmp_path, range(60))
    take(tmp_path / "in", tmp_path / "lake")
    put(tmp_path, range(80))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert (taken.refused(), taken.counted(), taken.report.rows_unchanged) == ([], {}, 83)


def test_a_known_file_that_cannot_be_read_any_more_is_refused_and_its_old_rows_stay(tmp_path, reading):
    put(tmp_path, range(80), "prose")
    take(tmp_path / "in", tmp_path / "lake")
    broken = [gpu_row(i).split(",", 1)[1] for i in range(200)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*broken, header=HEADER.split(",", 1)[1]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.series() == [(float(i), 100.0) for i in range(80)]
    assert taken.refused() == [(GPU_FILE, "missing_column", 200)]
    assert len(taken.rejected()) == 2
    assert_other_is_untouched(taken)
    put(tmp_path, range(90))
    mended = take_twice(tmp_path / "in", tmp_path / "lake")
    assert (len(mended.series()), mended.rejected(), mended.counted()) == (90, [], {})


def test_an_unknown_file_is_refused_each_time_but_noted_once(tmp_path):
    put(tmp_path, range(5))
    write(tmp_path, "in/notes.csv", "a,b\n1,2\n3,4\n")
    first = take(tmp_path / "in", tmp_path / "lake")
    again = take(tmp_path / "in", tmp_path / "lake")
    assert (first.report.partial, again.report.partial) == (True, True)
    assert (first.report.reasons, again.report.reasons) == ({"unknown_file": 2}, {"unknown_file": 2})
    assert first.report.generation == again.report.generation
    assert again.rows("quarantine", "file", "rows") == [("notes.csv", 2)]
    write(tmp_path, "in/notes.csv", "a,b\n1,2\n3,4\n5,6\n")
    changed = take_twice(tmp_path / "in", tmp_path / "lake")
    assert changed.rows("quarantine", "file", "rows") == [("notes.csv", 3)]


def test_a_new_file_is_taken_beside_refused_and_unchanged_ones(tmp_path):
    put(tmp_path, range(5))
    write(tmp_path, "in/notes.csv", "a,b\n1,2\n3,4\n")
    take(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, "in/gpu/0003/103-n1.csv", gpu_file(gpu_row(0, 7)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert (taken.report.rows_in, taken.report.rows_out, taken.report.rows_unchanged) == (11, 1, 10)
    assert taken.refused() == [("notes.csv", "unknown_file", 2)]
    assert taken.report.partial


def test_a_file_that_is_not_in_the_source_any_more_keeps_its_rows(tmp_path):
    put(tmp_path, range(5))
    take(tmp_path / "in", tmp_path / "lake")
    (tmp_path / "in" / GPU_FILE).unlink()
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert len(taken.series()) == 5
    assert (taken.report.files, taken.report.rows_in) == (1, 3)


def test_two_clusters_of_one_lake_do_not_know_each_other_s_files(tmp_path):
    put(tmp_path, range(5))
    take_twice(tmp_path / "in", tmp_path / "lake", cluster="north")
    put(tmp_path, range(3))
    taken = take_twice(tmp_path / "in", tmp_path / "lake", cluster="south")
    counts = taken.lake.scan("gpu_samples").group_by("cluster").len().collect().sort("cluster").rows()
    assert counts == [("north", 8), ("south", 6)]
    assert taken.refused() == []


def test_a_grown_log_replaces_its_old_rows_and_counts_its_attempts_anew(tmp_path):
    rows = [log_row(1000 + i) for i in range(20)]
    requeued = log_row(1005, time_start=START_S + 5000, time_end=START_S + 6000)
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, *rows))
    take_twice(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, *rows, requeued, rows[3]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    attempts = taken.lake.scan("jobs").filter(pl.col("job_id") == 1005).select("attempt", "start_time").collect()
    assert attempts.sort("attempt")["start_time"].dt.epoch("s").to_list() == [START_S - 10, START_S + 5000]
    assert taken.rejected() == [("slurm-log.csv", 23, "repeated_row", rows[3])]
    assert taken.counted() == {("requeued", ""): 1, ("repeated_row", ""): 1}


def test_a_changed_mapping_of_gpu_types_is_applied_to_a_log_that_did_not_change(tmp_path):
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, log_row(101)))
    write(tmp_path, "in/tres-mapping.txt", "1002,gpu:volta\n")
    assert take_twice(tmp_path / "in", tmp_path / "lake").rows("jobs", "gpu_type", "gpus") == [("volta", 2)]
    write(tmp_path, "in/tres-mapping.txt", "1002,gpu:h100\nnonsense\n")
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("jobs", "gpu_type", "gpus") == [("h100", 2)]
    assert taken.rejected() == [("tres-mapping.txt", 2, "wrong_type", "nonsense")]
    record = next(r for r in taken.report.records if r.kind == "tres")
    assert (record.rows_in, record.rows_merged, record.rows_quarantined) == (2, 1, 1)


H200_LOG = [log_row(1000 + i, tres_alloc='"1=40,1003=2"', tres_req="") for i in range(3)]


def test_the_mapping_of_gpu_types_is_remembered_for_a_log_that_comes_again_without_it(tmp_path):
    write(tmp_path, "one/gpu/0000/1000-n1.csv", gpu_file(gpu_row(0), gpu_row(1)))
    write(tmp_path, "one/slurm-log.csv", lines(LOG_HEADER, *H200_LOG[:2]))
    write(tmp_path, "one/tres-mapping.txt", "1,cpu\n1003,gres/gpu:h200\n")
    take_twice(tmp_path / "one", tmp_path / "lake")
    write(tmp_path, "two/slurm-log.csv", lines(LOG_HEADER, *H200_LOG))
    taken = take_twice(tmp_path / "two", tmp_path / "lake")
    assert taken.rows("jobs", "job_id", "gpus", "gpu_type") == [(1000 + i, 2, "h200") for i in range(3)]
    assert taken.rows("devices", "gpu_type", "tdp_w") == [("h200", 700.0)]
    assert ("tres_unknown", "1003") not in taken.counted()


def test_a_mapping_of_one_cluster_tells_nothing_of_another(tmp_path):
    write(tmp_path, "one/slurm-log.csv", lines(LOG_HEADER, *H200_LOG))
    write(tmp_path, "one/tres-mapping.txt", "1003,gpu:h200\n")
    take(tmp_path / "one", tmp_path / "lake", cluster="a")
    (tmp_path / "one/tres-mapping.txt").unlink()
    taken = take(tmp_path / "one", tmp_path / "lake", cluster="b")
    assert taken.lake.scan("jobs", "a").collect()["gpus"].to_list() == [2, 2, 2]
    assert taken.lake.scan("jobs", "b").collect()["gpus"].to_list() == [None, None, None]


def test_gpus_that_no_mapping_names_are_null_with_a_reason_until_a_mapping_comes(tmp_path):
    write(tmp_path, "log/slurm-log.csv", lines(LOG_HEADER, *H200_LOG))
    taken = take_twice(tmp_path / "log", tmp_path / "lake")
    assert taken.rows("jobs", "gpus", "gpu_type") == [(None, None)] * 3
    assert taken.counted() == {("tres_unknown", "1003"): 3}
    assert taken.report.partial
    write(tmp_path, "mapping/tres-mapping.txt", "1003,gpu:h200\n")
    take(tmp_path / "mapping", tmp_path / "lake")
    taken = take_twice(tmp_path / "log", tmp_path / "lake")  # the same log, which was read without these names
    assert taken.rows("jobs", "gpus", "gpu_type") == [(2, "h200")] * 3
    assert taken.counted() == {}


def test_a_log_that_shrank_is_refused_even_where_its_mapping_changed(tmp_path):
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, *H200_LOG))
    write(tmp_path, "in/tres-mapping.txt", "1003,gpu:h200\n")
    take(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, *H200_LOG[:1]))
    write(tmp_path, "in/tres-mapping.txt", "1003,gpu:h200-nvl\n")
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [("slurm-log.csv", "keys_lost", 0)]  # its rows stay
    assert taken.rows("jobs", "gpu_type") == [("h200",)] * 3


def test_every_kind_of_file_is_replaced_when_it_grows_and_only_it(tmp_path, reading):
    cpu = [f"batch,n1,Task_0,{i},{START_S + i},20,1.5,15,1000,3000,0,0.5,0.25" for i in range(30)]
    node = [f"{i},n{i % 2},{START_S + i},alice:3|,0.002,1.5,371,12" for i in range(40)]
    labels = [f"{1000 + i},vgg16" for i in range(90)]
    files = {
        "cpu/0001/101-timeseries.csv": (CPU_HEADER, cpu, "cpu_samples"),
        "node-data.csv": (NODE_HEADER, node, "node_samples"),
        "labelled_jobids.csv": ("id_job,model", labels, "labels"),
    }
    for name, (header, rows, _) in files.items():
        write(tmp_path, f"in/{name}", lines(header, *rows[:-10]))
    take_twice(tmp_path / "in", tmp_path / "lake")
    for name, (header, rows, table) in files.items():
        write(tmp_path, f"in/{name}", lines(header, *rows))
        taken = take_twice(tmp_path / "in", tmp_path / "lake")
        assert taken.lake.scan(table).select(pl.len()).collect().item() == len(rows)
        assert taken.report.rows_out == len(rows)


# -- files that share a series -----------------------------------------------------------------------------------------


def put_twins(tmp_path, base: int, extended: int) -> None:
    rows = [f"{START_S + i:.6f},0,99.5,{1000 * i},1980,2619" for i in range(extended)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[gpu_row(i, 100) for i in range(base)]))
    write(tmp_path, "in/gpu_extended/0001/101-n1.csv", lines(EXTENDED_HEADER, *rows))


def test_a_twin_that_shrank_is_refused_and_what_it_had_completed_stays(tmp_path):
    put_twins(tmp_path, 10, 10)
    take(tmp_path / "in", tmp_path / "lake")
    put_twins(tmp_path, 10, 6)
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [("gpu_extended/0001/101-n1.csv", "shrunken", 0)]
    assert taken.lake.read_series(101)["energy_counter_j"].null_count() == 0
    forced = take_twice(tmp_path / "in", tmp_path / "lake", force=True)
    assert forced.lake.read_series(101)["energy_counter_j"].null_count() == 4
    assert forced.refused() == []


def test_a_file_that_changed_while_its_twin_is_refused_waits_and_the_other_files_are_taken(tmp_path):
    put(tmp_path, range(3))
    put_twins(tmp_path, 10, 10)
    take(tmp_path / "in", tmp_path / "lake")
    put_twins(tmp_path, 40, 6)
    write(tmp_path, "in/gpu/0003/103-n1.csv", gpu_file(gpu_row(0, 7), "prose"))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    twin = "gpu_extended/0001/101-n1.csv"
    assert taken.refused() == [(GPU_FILE, "companion_missing", 0), (twin, "shrunken", 0)]
    assert f"{twin} is refused" in [detail for (detail,) in taken.rows("quarantine", "detail")]
    assert taken.series() == [(float(i), 100.0) for i in range(10)]
    assert taken.lake.read_series(101)["energy_counter_j"].null_count() == 0
    assert taken.series(103) == [(0.0, 7.0)]
    assert_other_is_untouched(taken)
    forced = take_twice(tmp_path / "in", tmp_path / "lake", force=True)
    assert len(forced.series()) == 40
    assert forced.refused() == []


def test_a_joined_file_that_changed_without_the_other_at_hand_waits_for_it(tmp_path, reading):
    write(tmp_path, "in/gpu/0001/101-n1.csv", gpu_file(*[gpu_row(i, 100) for i in range(50)]))
    write(tmp_path, "in/gpu/0002/101-n1.csv", gpu_file(*[gpu_row(i, 200) for i in range(50, 90)]))
    write(tmp_path, "in/gpu_extended/0001/101-n1.csv", lines(EXTENDED_HEADER))
    take(tmp_path / "in", tmp_path / "lake")
    other = (tmp_path / "in/gpu/0002/101-n1.csv").read_bytes()
    (tmp_path / "in/gpu/0002/101-n1.csv").unlink()
    write(tmp_path, "in/gpu/0001/101-n1.csv", gpu_file(*[gpu_row(i, 100) for i in range(52)]))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [("gpu/0001/101-n1.csv", "companion_missing", 0)]
    assert taken.series() == [(float(i), 100.0 if i < 50 else 200.0) for i in range(90)]
    write(tmp_path, "in/gpu/0002/101-n1.csv", other)
    whole = take_twice(tmp_path / "in", tmp_path / "lake")
    assert whole.series() == [(float(i), 100.0 if i < 52 else 200.0) for i in range(90)]
    assert whole.refused() == []


@pytest.mark.parametrize("form", ["", ".tar", ".tar.gz"])
def test_grown_twins_are_joined_from_every_form_of_source(tmp_path, form):
    put_twins(tmp_path, 10, 10)
    source = pack(tmp_path / "in", tmp_path / f"a{form}") if form else tmp_path / "in"
    take_twice(source, tmp_path / "lake")
    put_twins(tmp_path, 15, 10)
    source = pack(tmp_path / "in", tmp_path / f"b{form}") if form else tmp_path / "in"
    taken = take_twice(source, tmp_path / "lake")
    assert taken.lake.read_series(101)["energy_counter_j"].to_list() == [float(i) for i in range(10)] + [None] * 5


# -- any history -------------------------------------------------------------------------------------------------------


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_after_any_history_of_growth_the_lake_is_as_if_all_had_come_at_once(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("history")
    rng = random.Random(seed)
    names = ["gpu/0001/101-n1.csv", "gpu/0001/102-n1.csv", "gpu_extended/0001/101-n1.csv", "gpu/0003/103-n2.csv"]
    have = dict.fromkeys(names, 0)
    for _ in range(3):
        for name in rng.sample(names, rng.randint(1, len(names))):
            have[name] += rng.randint(1, 6)
            if name.startswith("gpu_extended"):
                rows = [f"{START_S + i:.6f},{i % 2},99.5,{1000 * i},1980,2619" for i in range(have[name])]
                write(folder, f"in/{name}", lines(EXTENDED_HEADER, *rows))
            else:
                rows = [gpu_row(i, "x" if i % 5 == 4 else 100 + i, gpu=i % 2) for i in range(have[name])]
                write(folder, f"in/{name}", gpu_file(*rows))
        grown = take(folder / "in", folder / "lake", cluster="c")
    fresh = take(folder / "in", folder / "fresh", cluster="c")
    tables = ("gpu_samples", "gpu_minutes", "job_stats", "devices", "quality", "quarantine")
    assert grown.contents(*tables) == fresh.contents(*tables)
    for table in ("quality", "quarantine"):
        assert grown.rows(table, "file", "reason") == fresh.rows(table, "file", "reason")
    counts = ("name", "rows_in", "rows_out", "rows_quarantined", "rows_merged", "checksum")
    assert grown.lake.inputs().select(counts).sort("name").equals(fresh.lake.inputs().select(counts).sort("name"))


# -- what is not the lake's --------------------------------------------------------------------------------------------


def test_files_of_others_below_the_root_are_left_alone_and_a_part_that_no_state_lists_is_removed(tmp_path):
    put(tmp_path, range(5))
    write(tmp_path, "lake/features/cluster=c/mine.parquet", "mine")
    take(tmp_path / "in", tmp_path / "lake")
    names = ("features/cluster=c/part-000001-00000.parquet", "gpu_samples/cluster=c/mine.parquet")
    for name in names:
        write(tmp_path, f"lake/{name}", "mine")
    write(tmp_path, "lake/gpu_samples/cluster=c/part-000001-00000.parquet", "left by a run that was killed")
    put(tmp_path, range(9))
    ingest(str(tmp_path / "in"), tmp_path / "lake", runner=SerialRunner())
    assert [(tmp_path / "lake" / name).read_text() for name in names] == ["mine"] * 2
    assert (tmp_path / "lake/features/cluster=c/mine.parquet").read_text() == "mine"
    assert not (tmp_path / "lake/gpu_samples/cluster=c/part-000001-00000.parquet").exists()


def test_the_lake_s_folders_are_those_of_its_tables():
    assert set(TABLES) == TABLE_FOLDERS
