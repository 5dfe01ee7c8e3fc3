"""Files with something wrong in their columns, name or bytes: taken as far as possible, or refused under a reason."""

from __future__ import annotations

import gzip
import zlib

import polars as pl
import pytest
import zstandard

from ingest import scan, tasks
from ingest.collectors.spool import HEADERS
from ingest.errors import SourceError
from ingest.records import IngestPlan, PlanSpec
from ingest.sources import delimited, inflate
from tests.gpu_files import HEADER
from tests.small_sources import (
    CPU_HEADER,
    GPU_FILE,
    LOG_HEADER,
    NODE_HEADER,
    START_S,
    gpu_file,
    gpu_row,
    lines,
    log_row,
    take,
    take_twice,
    write,
)
from tests.spool_files import gpu_cells, make_spool, write_segment

NAMES = HEADER.split(",")
ROWS = [gpu_row(i, 100 + i) for i in range(3)]
SOUND = [(0.0, 100.0), (1.0, 101.0), (2.0, 102.0)]


def cells(row: str, *names: str) -> str:
    """Some cells of a row, in the order of the names."""
    found = dict(zip(NAMES, row.split(","), strict=True))
    return ",".join(found[name] for name in names)


# -- columns -----------------------------------------------------------------------------------------------------------


def test_a_column_that_is_not_there_is_null_and_counted(tmp_path):
    names = [name for name in NAMES if name != "power_draw_W"]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[cells(row, *names) for row in ROWS], header=",".join(names)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.powers() == [(0.0, None), (1.0, None), (2.0, None)]
    assert taken.counted() == {("missing_column", "power_draw_W"): 1}
    assert taken.report.partial


def test_samples_of_all_jobs_in_a_file_that_names_no_job_are_those_of_none(tmp_path):
    header = "Node,timestamp,gpu_index,power_draw_W"
    write(tmp_path, "in/nvidia_smi.csv", lines(header, f"n1,{START_S},0,100", f"n1,{START_S + 1},0,101"))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("gpu_samples", "power_w", "job_id") == [(100.0, None), (101.0, None)]
    assert taken.counted()["missing_column", "id_job"] == 1


def test_a_segment_of_a_spool_that_names_no_job_has_samples_of_none(tmp_path):
    root = make_spool(tmp_path / "spool")
    path = write_segment(root, "gpu", 1, [gpu_cells(i, 101) for i in range(3)])
    at = HEADERS["gpu"].split(",").index("job_id")
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text(lines(*(",".join(row[:at] + row[at + 1 :]) for row in rows)))
    taken = take_twice(root, tmp_path / "lake")
    assert taken.rows("gpu_samples", "job_id") == [(None,)] * 3
    assert taken.counted()["missing_column", "job_id"] == 1


@pytest.mark.parametrize("needed", ["timestamp", "gpu_index"])
def test_a_file_without_a_column_that_it_needs_is_refused_with_the_number_of_its_rows(tmp_path, needed):
    names = [name for name in NAMES if name != needed]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[cells(row, *names) for row in ROWS], header=",".join(names)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "missing_column", 3)]
    assert taken.rows("quarantine", "detail") == [(needed,)]
    assert (taken.report.rows_in, taken.report.rows_quarantined, taken.report.files_refused) == (3, 3, 1)


def test_columns_are_found_by_name_in_any_order_and_case(tmp_path):
    order = NAMES[::-1]
    rows = [cells(row, *order) for row in ROWS]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows, header=",".join(order).upper()))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.powers() == SOUND
    assert taken.rows("gpu_samples", "memory_free_mib", "memory_temp_c", "pcie_link_width") == [(30000, 41, 16)] * 3
    assert not taken.report.partial


def test_an_unknown_column_is_named_in_the_report_and_costs_nothing(tmp_path):
    header = HEADER.replace("gpu_index", "gpu_index,fan_speed_pct")
    rows = [row.replace(",0,", ",0,30,", 1) for row in ROWS]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows, header=header))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.report.unknown_columns == {"fan_speed_pct": [GPU_FILE]}
    assert taken.powers() == SOUND
    assert taken.counted() == {("unknown_column", "fan_speed_pct"): 1}
    assert not taken.report.partial


def test_of_a_repeated_column_the_first_is_taken_and_the_second_counted(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*[f"{row},7" for row in ROWS], header=f"{HEADER},power_draw_W"))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.powers() == SOUND
    assert taken.counted() == {("repeated_column", "power_draw_W"): 1}
    assert taken.report.partial


def test_a_known_extra_column_is_stored_in_the_lake_s_unit(tmp_path):
    header = f"{HEADER},energy_mJ,clock_sm_MHz,power_limit_W,throttle_reasons"
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(f"{ROWS[0]},123456,1980,700,4", header=header))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    columns = ("energy_counter_j", "sm_clock_mhz", "power_limit_w", "throttle")
    assert taken.rows("gpu_samples", *columns) == [(123.456, 1980, 700.0, 4)]


def test_a_missing_cell_of_an_extra_column_is_counted_too(tmp_path):
    rows = [f"{ROWS[0]},1000", f"{ROWS[1]},N/A", f"{ROWS[2]},{2**63}"]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows, header=f"{HEADER},energy_mJ"))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("gpu_samples", "time", "energy_counter_j")[0][1] == 1.0
    assert taken.counted() == {("missing_value", "energy_counter_j"): 1, ("sentinel", "energy_counter_j"): 1}


def test_throttle_reasons_as_nvidia_smi_writes_them_are_read_by_the_quick_parsers(tmp_path, monkeypatch):
    words = ["0x0000000000000004", "0x0000000000000000", "0X20", "4"]
    rows = [f"{gpu_row(i, 100 + i)},{word}" for i, word in enumerate(words)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows, header=f"{HEADER},clocks_throttle_reasons"))
    monkeypatch.delattr(delimited, "parse_careful")
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.lake.read_series(101, ["throttle"])["throttle"].to_list() == [4, 0, 32, 4]
    assert (taken.counted(), taken.rejected(), taken.report.partial) == ({}, [], False)


EXTRAS = {
    "clocks_throttle_reasons": "throttle",
    "power_limit_W": "power_limit_w",
    "clock_sm_MHz": "sm_clock_mhz",
    "energy_mJ": "energy_counter_j",
}


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("clocks_throttle_reasons", "Active"),
        ("clocks_throttle_reasons", "0x8000000000000000"),
        ("power_limit_W", "x"),
        ("power_limit_W", "99999"),
        ("clock_sm_MHz", "1.5"),
        ("energy_mJ", "-5"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [4 * 2**20, 1000])
def test_a_bad_cell_of_an_extra_column_costs_the_cell_and_not_the_sample(
    tmp_path, monkeypatch, column, cell, chunk_bytes
):
    monkeypatch.setattr(scan, "CHUNK_BYTES", chunk_bytes)
    n, lake_column = 60, EXTRAS[column]
    rows = [f"{gpu_row(i, 100)},{cell if i == 1 else 4}" for i in range(n)]
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*rows, header=f"{HEADER},{column}"))
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file(f"{gpu_row(0, 7)},4", header=f"{HEADER},{column}"))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert (taken.report.rows_out, taken.report.rows_quarantined, taken.report.partial) == (n + 1, 0, True)
    assert taken.rows("quality", "file", "reason", "detail", "count") == [(GPU_FILE, "bad_extra_cell", lake_column, 1)]
    found = taken.lake.read_series(101, [lake_column])[lake_column]
    assert (found[0] is not None, found[1], found.null_count()) == (True, None, 1)


def test_a_bad_cell_of_a_column_that_the_row_needs_still_costs_the_row(tmp_path):
    header = "timestamp,gpu_index,node,id_job,power_draw_W,power_limit_W"
    rows = [f"{START_S + i},0,n1,{job},100,x" for i, job in enumerate([101, "1e5", "x"])]
    write(tmp_path, "in/nvidia_smi.csv", lines(header, *rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert [(line, reason) for _, line, reason, _ in taken.rejected()] == [(3, "id_not_exact"), (4, "wrong_type")]
    assert taken.counted()["bad_extra_cell", "power_limit_w"] == 1


def test_a_log_with_an_exponent_for_an_id_and_a_node_list_of_strings_is_taken_where_it_is_exact(tmp_path):
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, log_row(101), log_row("1.01922647820325E+13")))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("jobs", "job_id", "node_list") == [(101, "n1")]
    assert [(line, reason) for _, line, reason, _ in taken.rejected()] == [(3, "id_not_exact")]


# -- names and places --------------------------------------------------------------------------------------------------


BAD_NAMES = {
    "gpu/0001/notes.csv": ("bad_file_name", 3),
    "gpu/0001/1.0e+13-n1.csv": ("bad_file_name", 3),
    "gpu/0001/101.csv": ("bad_file_name", 3),
    "gpu/0001/-5-n1.csv": ("bad_file_name", 3),
    "gpu/0001/1234567890123456789-n1.csv": ("bad_file_name", 3),
    "cpu/0001/101.csv": ("bad_file_name", 3),
    "more-samples.csv": ("unknown_file", 3),
    "power/samples.csv": ("unknown_file", 3),
    "gpu/0001/a\nb/103-n1.csv": ("bad_file_name", 0),
    "gpu/0001/103-n\x1b[31m.csv": ("bad_file_name", 0),
}


def test_files_of_names_that_do_not_parse_are_refused_with_their_rows_and_the_others_are_taken(tmp_path):
    for name in [GPU_FILE, *BAD_NAMES]:
        write(tmp_path, f"in/{name}", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    shown = {name.replace("\n", "\\x0a").replace("\x1b", "\\x1b"): why for name, why in BAD_NAMES.items()}
    assert taken.refused() == sorted((name, *why) for name, why in shown.items())
    assert (taken.report.rows_quarantined, taken.report.files_refused, taken.report.partial) == (24, 10, True)
    assert taken.powers() == SOUND


def test_a_file_name_that_is_not_utf8_is_refused_under_a_name_that_can_be_stored(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    folder = bytes(tmp_path / "in" / "gpu" / "0001")
    with open(folder + b"/102-\xff.csv", "w") as file:  # noqa: PTH123
        file.write(gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [("gpu/0001/102-\\xff.csv", "bad_file_name", 0)]
    assert taken.powers() == SOUND


def test_a_file_that_is_there_plain_and_compressed_is_taken_once(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    write(tmp_path, f"in/{GPU_FILE}.gz", gzip.compress(gpu_file(*ROWS).encode()))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "repeated_member", 3)]
    assert taken.powers() == SOUND


@pytest.mark.parametrize("kind", ["timeseries", "summary"])
def test_a_second_cpu_file_of_a_job_is_refused_and_its_rows_are_not_stored_twice(tmp_path, kind):
    row = f"batch,n1,Task_0,0,{START_S},20,1.5,15,1000,3000,0,0.5,0.25"
    header = CPU_HEADER
    if kind == "summary":
        header, row = "Step,Node,Series,ElapsedTime,Min_RSS", "batch,n1,Task_0,10,7"
    write(tmp_path, f"in/cpu/0001/101-{kind}.csv", lines(header, row))
    write(tmp_path, f"in/cpu/0002/101-{kind}.csv", lines(header, row))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(f"cpu/0002/101-{kind}.csv", "series_from_other_file", 1)]
    assert taken.rows("cpu_samples" if kind == "timeseries" else "cpu_job_summary", "job_id") == [(101,)]


def test_of_two_logs_in_one_source_the_second_is_refused(tmp_path):
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, log_row(103)))
    write(tmp_path, "in/scheduler-log.csv", lines(LOG_HEADER, log_row(101), log_row(102)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [("slurm-log.csv", "series_from_other_file", 1)]
    assert taken.rows("jobs", "job_id", "attempt") == [(101, 0), (102, 0)]


@pytest.mark.parametrize("name", ["slurm-log.csv", "scheduler-log.csv", "scheduler_data.csv"])
def test_the_log_is_known_by_each_of_its_names(tmp_path, name):
    write(tmp_path, f"in/{name}", lines(LOG_HEADER, log_row(101), log_row(102)))
    assert take_twice(tmp_path / "in", tmp_path / "lake").rows("jobs", "job_id") == [(101,), (102,)]


@pytest.mark.parametrize("header", ["id,model", "id_job,model", "job_id,label", "ID_JOB,Model"])
def test_labels_are_known_by_each_spelling_of_their_header(tmp_path, header):
    write(tmp_path, "in/labelled_jobids.csv", lines(header, "101,vgg16", "102,Bert"))
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, log_row(101), log_row(102)))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("labels", "job_id", "label") == [(101, "vgg16"), (102, "Bert")]
    assert not taken.report.partial


def test_a_label_of_a_job_that_nobody_knows_is_stored_and_counted(tmp_path):
    write(tmp_path, "in/labelled_jobids.csv", lines("id_job,model", "101,vgg16", "999,vgg16", "102,vgg16", "102,vgg19"))
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, log_row(102)))
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.rows("labels", "job_id", "label") == [(101, "vgg16"), (102, "vgg16"), (999, "vgg16")]
    assert taken.rejected() == [("labelled_jobids.csv", 5, "repeated_row", "102,vgg19")]
    unknown = taken.lake.scan("quality").filter(pl.col("reason") == "label_without_job").select("job_id").collect()
    assert unknown["job_id"].to_list() == [999]


def test_a_label_without_samples_is_counted_where_there_is_no_log_either(tmp_path):
    write(tmp_path, "in/labelled_jobids.csv", lines("id_job,model", "101,vgg16", "999,vgg16"))
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.counted() == {("label_without_job", ""): 1}
    assert taken.report.partial


def test_samples_of_a_job_that_the_log_does_not_have_are_stored_and_counted(tmp_path):
    write(tmp_path, "in/slurm-log.csv", lines(LOG_HEADER, log_row(102)))
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.counted() == {("job_without_record", ""): 1}
    assert taken.powers() == SOUND


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_empty_files_are_refused_by_that_name(tmp_path):
    for i, content in enumerate([b"", b"\xef\xbb\xbf", b"\n", b"\r\n"]):
        write(tmp_path, f"in/gpu/0001/{200 + i}-n1.csv", content)
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(f"gpu/0001/{200 + i}-n1.csv", "empty_file", 0) for i in range(4)]
    assert taken.powers() == SOUND


def test_rows_below_an_empty_header_are_counted_as_quarantined(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", lines("", *ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "empty_file", 3)]
    assert taken.report.rows_quarantined == 3


def test_files_of_a_header_alone_are_taken_as_no_rows(tmp_path):
    for i, below in enumerate(["", "\n", "\n\n   \n"]):
        write(tmp_path, f"in/gpu/0001/{200 + i}-n1.csv", HEADER + "\n" + below)
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert (taken.report.rows_in, taken.report.files, taken.report.partial) == (3, 4, False)
    assert taken.powers() == SOUND


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_is_the_same_as_a_plain_one(tmp_path, ending):
    content = gpu_file(*ROWS).encode()
    packed = gzip.compress(content) if ending == ".gz" else zstandard.ZstdCompressor().compress(content)
    write(tmp_path, f"in/{GPU_FILE}{ending}", packed)
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.powers() == SOUND
    (tmp_path / f"in/{GPU_FILE}{ending}").unlink()
    write(tmp_path, f"in/{GPU_FILE}", content)
    assert take(tmp_path / "in", tmp_path / "lake").report.files_unchanged == 1


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_the_whole_lines_before_the_cut_of_a_compressed_file_are_kept_and_the_cut_line_is_quarantined(tmp_path, ending):
    content = gpu_file(*[gpu_row(i / 10, 100 + i % 7) for i in range(3000)]).encode()
    if ending == ".gz":
        packed = gzip.compress(content)[:-2000]
        kept = zlib_prefix(packed)
    else:
        compressor = zstandard.ZstdCompressor(level=1).compressobj()
        first = compressor.compress(content[:70_011]) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        packed, kept = first, content[:70_011]
    write(tmp_path, f"in/{GPU_FILE}{ending}", packed)
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    whole, _, cut = kept.decode().rpartition("\n")
    n = whole.count("\n")
    assert 0 < n < 3000
    assert cut
    assert len(taken.powers()) == n
    assert taken.powers()[-1] == ((n - 1) / 10, 100.0 + (n - 1) % 7)
    assert taken.rejected() == [(GPU_FILE, n + 2, "truncated", cut)]
    assert [reason for reason, _ in taken.counted()] == ["truncated"]
    assert taken.report.partial


def zlib_prefix(packed: bytes) -> bytes:
    """What can be inflated of a gzip file that was cut short."""
    return zlib.decompressobj(wbits=31).decompress(packed)


def test_compressed_files_of_which_no_line_can_be_read_are_refused(tmp_path):
    for i, packed in enumerate([gzip.compress(b"x" * 999)[:11], b"\x1f\x8b", b"no gzip at all"]):
        write(tmp_path, f"in/gpu/0001/{200 + i}-n1.csv.gz", packed)
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(f"gpu/0001/{200 + i}-n1.csv", "truncated", 0) for i in range(3)]
    assert taken.powers() == SOUND


def test_a_compressed_file_with_a_wrong_checksum_is_kept_and_counted(tmp_path):
    packed = bytearray(gzip.compress(gpu_file(*ROWS).encode()))
    packed[-6] ^= 1
    write(tmp_path, f"in/{GPU_FILE}.gz", bytes(packed))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.powers() == SOUND
    assert [reason for reason, _ in taken.counted()] == ["truncated"]


def test_a_file_that_inflates_too_far_is_refused_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(inflate, "INFLATION_FREE_BYTES", 100_000)
    write(tmp_path, f"in/{GPU_FILE}.gz", gzip.compress((HEADER + "\n").encode() + b"\n" * 5_000_000))
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "too_large", 0)]
    assert taken.powers() == SOUND


def test_a_file_over_the_limit_is_refused_compressed_or_not(tmp_path):
    content = gpu_file(*[gpu_row(i) for i in range(40)]).encode()
    write(tmp_path, "in/gpu/0001/101-n1.csv", content)
    write(tmp_path, "in/gpu/0001/102-n1.csv.gz", gzip.compress(content))
    write(tmp_path, "in/gpu/0001/103-n1.csv", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake", max_member_bytes=1000)
    assert taken.refused() == [("gpu/0001/101-n1.csv", "too_large", 0), ("gpu/0001/102-n1.csv", "too_large", 0)]
    assert taken.powers() == SOUND


def test_a_file_that_vanishes_between_plan_and_scan_is_refused_and_the_others_are_taken(tmp_path, monkeypatch):
    gone = write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file(*ROWS))
    make_plan = tasks.plan

    def plan_and_lose(spec: PlanSpec) -> IngestPlan:
        plan = make_plan(spec)
        gone.unlink()
        return plan

    monkeypatch.setattr(tasks, "plan", plan_and_lose)
    taken = take(tmp_path / "in", tmp_path / "lake")
    assert taken.refused() == [(GPU_FILE, "unreadable", 0)]
    assert taken.powers() == SOUND


def test_a_file_that_was_refused_and_is_sound_now_leaves_no_trace_of_its_refusal(tmp_path):
    write(tmp_path, f"in/{GPU_FILE}", b"")
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file(*ROWS))
    take_twice(tmp_path / "in", tmp_path / "lake")
    write(tmp_path, f"in/{GPU_FILE}", gpu_file(*ROWS))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    assert (taken.refused(), taken.counted(), taken.report.partial) == ([], {}, False)
    assert len(taken.powers()) == 6


# -- the node log ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "stored_kib", "reasons"),
    [
        (["371", "12.5"], [371 * 1024 * 1024, 12.5 * 1024 * 1024], {}),
        (["263551496", "263551400"], [263551496, 263551400], {}),
        (["100000", "90000"], [None, None], {("mem_unit_unknown", "MemoryFreeInactiveKB"): 2}),
        (["263551496", "371.5"], [263551496, None], {("mem_unit_unknown", "MemoryFreeInactiveKB"): 1}),
        (["263551496", "300000000000"], [263551496, None], {("mem_unit_unknown", "MemoryFreeInactiveKB"): 1}),
        (["300000000000"], [None], {("mem_unit_unknown", "MemoryFreeInactiveKB"): 1}),
        (["371", "N/A"], [371 * 1024 * 1024, None], {("missing_value", "mem_free_kib"): 1}),
        (["371", "-1"], [371 * 1024 * 1024], {("out_of_range", ""): 1}),
    ],
)
def test_the_unit_of_free_memory_is_told_by_its_size_and_never_guessed(tmp_path, written, stored_kib, reasons):
    rows = [f"{i},n1,{START_S + i},alice:3|bob:4|,0.002,1.5,{free},12" for i, free in enumerate(written)]
    write(tmp_path, "in/node-data.csv", lines(NODE_HEADER, *rows))
    taken = take_twice(tmp_path / "in", tmp_path / "lake")
    found = taken.lake.scan("node_samples").sort("time").collect()
    assert found["mem_free_kib"].to_list() == stored_kib
    assert found["process_count"].to_list() == [7] * len(stored_kib)
    assert taken.counted() == reasons


# -- sources that are none ---------------------------------------------------------------------------------------------


def test_a_folder_without_any_known_file_is_an_error_that_says_what_was_expected(tmp_path):
    write(tmp_path, "in/notes.csv", "a,b\n")
    told = rf"^{tmp_path}/in: no table of the Datacenter Challenge or HPCA'22 layout found; .*; found notes.csv$"
    with pytest.raises(SourceError, match=told):
        take(tmp_path / "in", tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


def test_two_releases_side_by_side_are_an_error_that_names_them(tmp_path):
    write(tmp_path, f"in/a/{GPU_FILE}", gpu_file(*ROWS))
    write(tmp_path, f"in/b/{GPU_FILE}", gpu_file(*ROWS))
    with pytest.raises(SourceError, match=r"in: several releases side by side \(a, b\)"):
        take(tmp_path / "in", tmp_path / "lake")
